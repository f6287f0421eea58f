"""Outputs from a worker's folder to where they belong, each once and whole.

Of two workers with one file one wins, and the other finds the same bytes there, or those of another
kind of device, by their tags: both are right, and the first stands. What is neither is somebody
else's, and is not touched. A folder keeps no tags: there other bytes are always somebody else's.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from prolora_jax.catalog.fleet.receipts import Filed, Known
from prolora_jax.errors import AdapterRefused, OutputError, Refusal
from prolora_jax.io.outputs.catalog_files import file_hash
from prolora_jax.io.outputs.reports import report_path
from prolora_jax.io.places.place import FilePlace, Head
from prolora_jax.io.places.staging import PIECE

JOB_TAG, INPUT_TAG = "prolora-job", "prolora-input"

_MEETINGS = 3
"""How often two workers who replace one file may meet."""


class Publisher(NamedTuple):
    """Where outputs go, and whose they are.

    Attributes:
        place: of the outputs.
        job: digest of the job.
        overwrite: whether outputs of others may be replaced.
    """

    place: FilePlace
    job: str
    overwrite: bool = False

    def publish(
        self, folder: Path, output: str, etag: str, before: Known | None
    ) -> dict[str, Filed]:
        """Put an output and then its report where they belong.

        Args:
            folder: that they are in.
            output: path below it, of a file or folder.
            etag: of the input.
            before: the receipt of an earlier output, which may be replaced.

        Returns:
            What is there now, by key.

        Raises:
            AdapterRefused: the place cannot hold a file of that name.
            OutputError: somebody else's file is there, the place cannot hold this one, or does not
                answer.
        """
        path = folder / output
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        known = before.receipt.files if before is not None else {}
        tags = {JOB_TAG: self.job, INPUT_TAG: sha256(f"{output} {etag}".encode()).hexdigest()[:32]}
        keys = {file.relative_to(folder).as_posix(): file for file in (*files, report_path(path))}
        for key in keys:  # an output whose report has no place would be nobody's
            self.place.require_name(key)
        return {key: self._put(key, file, tags, known.get(key)) for key, file in keys.items()}

    def publish_beside(self, folder: Path, key: str) -> None:
        """Put a file about an adapter beside its output; what is there already stays.

        Args:
            folder: that it is in.
            key: path below it.

        Raises:
            AdapterRefused: the place cannot hold a file of that name.
            OutputError: the place does not answer.
        """
        self.place.create(key, folder / key, {JOB_TAG: self.job})

    def _put(self, key: str, file: Path, tags: Mapping[str, str], known: Filed | None) -> Filed:
        ours = file_hash(file)
        written = self.place.create(key, file, tags)
        for _ in range(_MEETINGS):
            if written.ours:
                break
            head = self.place.head(key)
            if head is None:
                written = self.place.create(key, file, tags)
                continue
            try:
                theirs = _hash(self.place, key, head)
            except (AdapterRefused, FileNotFoundError):
                continue  # it was replaced while it was read
            if theirs == ours or all(head.tags.get(name) == text for name, text in tags.items()):
                return Filed(theirs, head.etag)
            if not self.overwrite and (known is None or known.etag != head.etag):
                break
            written = self.place.replace_if(key, file, head.etag, tags)
        if written.ours:
            return Filed(ours, written.etag)
        raise OutputError(
            f"{self.place.shown}/{key}: exists already and is not of this job; expected no file "
            "there; use --overwrite, or name another place",
            code=Refusal.OUTPUT_EXISTS,
        )


def _hash(place: FilePlace, key: str, head: Head) -> str:
    digest = sha256()
    for start in range(0, head.size, PIECE):
        length = min(PIECE, head.size - start)
        digest.update(place.read_range(key, start, length, head.etag))
    return digest.hexdigest()


def stored_hash(place: FilePlace, key: str) -> str | None:
    """SHA-256 of a file of a place; None when it is not there.

    Args:
        place: where it is.
        key: of the file.

    Raises:
        OutputError: the place does not answer.
    """
    head = place.head(key)
    return None if head is None else _hash(place, key, head)
