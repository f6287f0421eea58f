"""Pictures of a folder: which there are, what is in them, and those that are refused."""

import hashlib
import warnings
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.guarded import read_small

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_MOST_BYTES = 2**28
_MOST_PIXELS = 2**26  # 8192 x 8192: more is no picture of a text-to-image model


class Rejected(NamedTuple):
    """A picture that cannot be judged.

    Attributes:
        path: of the file.
        reason: in words for a user.
    """

    path: Path
    reason: str


class ReadPicture(NamedTuple):
    """A picture, and what it is known by.

    Attributes:
        path: of the file.
        digest: SHA-256 of its bytes.
        picture: decoded.
    """

    path: Path
    digest: str
    picture: Image.Image


def picture_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder, in the order of their names.

    Args:
        folder: with files that end as pictures do; everything else is passed over.

    Raises:
        UsageError: there is no such folder, or no picture in it.
    """
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    pictures = [
        path for path in found if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    ]
    if not pictures:
        what = f"found {len(found)} files, no picture" if folder.is_dir() else "no such folder"
        raise UsageError(
            f"{folder}: {what}; expected a folder with pictures ({', '.join(ENDINGS)}); name "
            f"another",
            code=Refusal.MISSING_FILE,
        )
    return pictures


def read_picture(path: Path) -> ReadPicture | Rejected:
    """A picture whole, or why it cannot be had: unreadable, cut off, no picture, too large.

    Args:
        path: of a file.
    """
    try:
        content = read_small(path, _MOST_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about sizes: ours are checked here
            picture = Image.open(BytesIO(content))
            if picture.width * picture.height > _MOST_PIXELS:
                return Rejected(path, f"found {picture.width} x {picture.height} pixels; too many")
            picture.load()
    except Exception as failure:  # noqa: BLE001 (decoders raise whatever they stumble over)
        reason = " ".join(str(failure).split()).replace(f"'{path}'", "").strip()[:200]
        return Rejected(path, f"cannot be read as a picture ({type(failure).__name__}: {reason})")
    return ReadPicture(path, hashlib.sha256(content).hexdigest(), picture)


def note_of(path: Path, key: str) -> str:
    """A text that a PNG has under a key; empty where the picture is not there, whole, or has none.

    Args:
        path: of a file.
        key: of the text.
    """
    read = read_picture(path)
    return "" if isinstance(read, Rejected) else str(read.picture.info.get(key, ""))
