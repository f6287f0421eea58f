"""Embeddings that were computed before, by picture and encoder.

One small file for each, written whole or not at all: any number of processes may share a folder. A
damaged one is as good as not there.
"""

from io import BytesIO
from pathlib import Path

import numpy as np

from prolora_jax.io import atomic
from prolora_jax.io.guarded import read_small


class KeptEmbeddings:
    """Embeddings by one encoder, in a folder.

    Attributes:
        folder: of this encoder, in the folder for all.
        width: numbers in an embedding.
    """

    def __init__(self, folder: Path, encoder: str, width: int):
        """Nothing is read or written yet.

        Args:
            folder: for all encoders.
            encoder: what the encoder is known by: its weights and how pictures are prepared.
            width: numbers in an embedding.
        """
        self.folder = folder / encoder
        self.width = width

    def read(self, picture: str) -> np.ndarray | None:
        """The embedding of a picture, `(width,)` float32; None where there is no whole one.

        Args:
            picture: SHA-256 of its bytes.
        """
        try:
            found = np.load(BytesIO(read_small(self._place(picture))), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        fits = found.shape == (self.width,) and found.dtype == np.float32
        return found if fits and np.isfinite(found).all() else None

    def write(self, picture: str, embedding: np.ndarray) -> None:
        """Keep the embedding of a picture.

        Args:
            picture: SHA-256 of its bytes.
            embedding: `(width,)` float32.

        Raises:
            OutputError: it cannot be written.
        """
        content = BytesIO()
        np.save(content, embedding, allow_pickle=False)
        atomic.write_bytes(self._place(picture), content.getvalue())

    def _place(self, picture: str) -> Path:
        return self.folder / picture[:2] / f"{picture}.npy"
