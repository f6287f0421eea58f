"""What a long job has done so far: arrays on disk, so that a job that was killed can go on."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prolora_jax.errors import BaseModelError, ProloraError
from prolora_jax.io.containers.tensors import TensorFile, write_tensors

_STAMP = "prolora-job"


class WorkFolder:
    """A folder of files that each hold the arrays of one step, whole or not at all.

    A file counts only under the stamp it was written with, a digest of all that its numbers depend
    on; one that is damaged, or another job's, is as good as not there.

    Attributes:
        path: the folder.
        stamp: of the job.
    """

    def __init__(self, path: Path, stamp: str):
        self.path, self.stamp = path, stamp

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a step, or None if the step is still to be done."""
        file = self.path / f"{name}.safetensors"
        if not file.is_file():
            return None
        try:
            opened = TensorFile(file, error=BaseModelError)
            mine = opened.metadata.get(_STAMP) == self.stamp
            return opened.read_all() if mine else None
        except ProloraError:
            return None

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays of a step.

        Raises:
            OutputError: they cannot be written.
        """
        write_tensors(self.path / f"{name}.safetensors", arrays, {_STAMP: self.stamp})

    def begin(self) -> None:
        """Say so at once if nothing can be kept here, not after minutes of work.

        Raises:
            OutputError: the folder cannot be written to.
        """
        self.save("begun", {"nothing": np.zeros(0, np.uint8)})

    def remove(self) -> None:
        """The job is done: the folder goes."""
        shutil.rmtree(self.path, ignore_errors=True)
