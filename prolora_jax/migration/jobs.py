"""What is to be done with one of many files, and what became of it."""

from pathlib import Path
from typing import NamedTuple

from prolora_jax.errors import ProloraError, Refusal, UsageError
from prolora_jax.migration.files import Writing
from prolora_jax.plans.report import MigrationReport


class FileJob(NamedTuple):
    """One adapter file (or folder) and where its output goes.

    Attributes:
        source: the input.
        output: the output.
        rank: the largest rank in it, where that is known; files of like rank come together.
        table: a name for its table of tensors, where that is known; so do files of one table.
        replace: an output that is there is an earlier one of this job, and may be replaced.
    """

    source: Path
    output: Path
    rank: int | None = None
    replace: bool = False
    table: str | None = None


class FileOutcome(NamedTuple):
    """What became of one file: a report, or an error.

    Attributes:
        job: what was to be done.
        report: what was done.
        error: why it was not.
        energy: squared norm of the input's update, and of the modules that move.
        seconds: of reading, planning and writing it, and its share of its batch.
        written: SHA-256 of the output's bytes, where it is known already.
    """

    job: FileJob
    report: MigrationReport | None = None
    error: ProloraError | None = None
    energy: tuple[float, float] | None = None
    seconds: float | None = None
    written: str | None = None


def for_job(job: FileJob, writing: Writing) -> Writing:
    """How a job's output is written: an earlier one of its own may be replaced."""
    return writing._replace(overwrite=writing.overwrite or job.replace)


def as_outcome(error: Exception, source: Path) -> ProloraError:
    """What went wrong with one file as that file's refusal, with a code.

    Args:
        error: anything that was raised while the file was handled.
        source: the file.
    """
    if isinstance(error, ProloraError):
        return error
    if isinstance(error, OSError):
        message = f"{source}: cannot be read ({error.strerror or error}); check the disk"
        return UsageError(message, code=Refusal.MISSING_FILE)
    return unexpected(error, source)


def unexpected(error: Exception, where: object) -> ProloraError:
    """A mistake of ours as a refusal."""
    return ProloraError(
        f"{where}: internal error, please report it: {type(error).__name__}: {error}",
        code=Refusal.INTERNAL,
    )
