"""What is to be done, as every worker is told it; the note that one place has one job."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

import msgspec

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.places.opening import is_url, open_place, without_secrets
from prolora_jax.io.places.place import FilePlace, read_whole
from prolora_jax.migration.files import Writing
from prolora_jax.plans.options import MigrationOptions

OWN = ".prolora"
"""Folder of the outputs' place for what is not an output."""

JOB = f"{OWN}/job.json"
_LARGEST = 2**22
VERSION = 1


@dataclass(frozen=True)
class FleetJob:
    """What is to be done with a catalog, by any number of workers; travels by pickle.

    Attributes:
        inputs: folder or URL of the adapters.
        out: folder or URL of the outputs, which get the same tree.
        source: base model: path, hub id, or URL.
        target: base model.
        options: of every migration.
        writing: formats, and whether outputs of others may be replaced.
        store: local folder of subspaces and operators; `shared`'s copy where that is told.
        cache: local folder for base models that were fetched from URLs; None for `store`'s.
        processes: of each worker, for what has to be computed.
        shared: URL or folder of a store that all hosts have in common.
        share: this host's number, from 0, and how many hosts there are.
        limit: bytes that `store` may have, but for what running workers use; None: any.
    """

    inputs: str
    out: str
    source: str
    target: str
    options: MigrationOptions = MigrationOptions()
    writing: Writing = Writing()
    store: Path = Path("store")
    cache: Path | None = None
    processes: int = 1
    shared: str | Path | None = None
    share: tuple[int, int] | None = None
    limit: int | None = None

    @property
    def asked(self) -> str:
        """Digest of what outputs shall be; not of where base models lie or whose files give way."""
        writing = self.writing._replace(pair=None, overwrite=False)
        facts = (open_place(self.inputs).shown, self.options, writing)
        return sha256(msgspec.json.encode(facts)).hexdigest()[:32]


@dataclass(frozen=True)
class JobNote:
    """The job of a place, as its first worker has noted it.

    Attributes:
        version: of what lies under `.prolora`.
        asked: digest of the job.
        bases: digest of the weights of both base models.
        inputs: the catalog, in words.
        source: name of the source.
        target: name of the target.
        options: those that differ from their defaults, and the method.
    """

    version: int
    asked: str
    bases: str
    inputs: str
    source: str
    target: str
    options: dict[str, object]

    @property
    def digest(self) -> str:
        """Of all of it: outputs of one digest have one meaning."""
        return sha256(msgspec.json.encode(self)).hexdigest()[:32]


def claim(place: FilePlace, note: JobNote) -> JobNote:
    """Note the job of a place, or find the same one there.

    Args:
        place: of the outputs.
        note: of the job.

    Returns:
        What is noted there: base models may have other names on other hosts.

    Raises:
        UsageError: it has another job.
        OutputError: it does not answer.
    """
    text = msgspec.json.format(msgspec.json.encode(note)) + b"\n"
    if place.create(JOB, text, {}).ours:
        return note
    known = read_note(place)
    if (known.version, known.asked, known.bases) != (note.version, note.asked, note.bases):
        told = "other base models" if known.asked == note.asked else "another job"
        raise UsageError(_another(place, told), code=Refusal.LOCKED)
    return known


def is_begun(place: FilePlace) -> bool:
    """Whether a worker of any host has noted its job in a place.

    Args:
        place: of the outputs.

    Raises:
        OutputError: it does not answer.
    """
    return place.head(JOB) is not None


def require_same_job(place: FilePlace, job: FleetJob) -> None:
    """Refuse a place that has another job, before any worker is started.

    Args:
        place: of the outputs.
        job: what is to be done.

    Raises:
        UsageError: it has another job.
        OutputError: it does not answer.
    """
    if is_begun(place) and read_note(place).asked != job.asked:
        raise UsageError(_another(place, "another job"), code=Refusal.LOCKED)


def require_apart(job: FleetJob) -> None:
    """Refuse to replace files where a job's own inputs or base models might be among them.

    Args:
        job: what is to be done.

    Raises:
        UsageError: they lie at or below the place of the outputs, and `overwrite` is set.
    """
    if not job.writing.overwrite:
        return
    out = open_place(job.out).shown
    for place in (job.inputs, job.source, job.target):
        # What is neither a URL nor there is a hub's name.
        read = is_url(place) or Path(place).exists()
        if read and PurePosixPath(open_place(place).shown).is_relative_to(PurePosixPath(out)):
            raise UsageError(
                f"{without_secrets(place)}: found it where outputs may replace what is there "
                f"({out}); expected inputs and base models elsewhere; name another --out, or leave "
                "--overwrite out",
                code=Refusal.OUTPUT_EXISTS,
            )


def read_note(place: FilePlace) -> JobNote:
    """The job of a place.

    Args:
        place: of the outputs.

    Raises:
        UsageError: it has none that can be read.
        OutputError: it does not answer.
    """
    try:
        text, _ = read_whole(place, JOB, _LARGEST)
        return msgspec.json.decode(text, type=JobNote)
    except FileNotFoundError:
        raise UsageError(
            f"{place.shown}: found no {JOB}; expected the outputs of `prolora fleet run`; check "
            "the path",
            code=Refusal.MISSING_FILE,
        ) from None
    except msgspec.MsgspecError as failure:
        raise UsageError(
            f"{place.shown}/{JOB}: cannot be read ({failure}); expected what `prolora fleet run` "
            "writes; use the version of prolora that wrote it, or name another place",
            code=Refusal.BAD_REPORT,
        ) from None


def _another(place: FilePlace, what: str) -> str:
    return (
        f"{place.shown}: found {what} there; expected the same inputs, options and base models as "
        "in the first run; name another --out"
    )
