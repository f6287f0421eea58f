"""What is known of each file of a catalog, and of the catalog as a whole."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from prolora_jax.errors import Refusal

State = Literal["planned", "migrated", "duplicate", "refused", "failed", "ignored"]
"""`refused`: by its verdict; `failed`: something broke in the run (a full disk, a lost file);
`ignored`: no adapter, and nothing is wrong with that (a training run's own state)."""

Verdict = Literal["ok", "partial", "refused", "ignored"]
"""`ok`: every module moves; `partial`: some do; `refused`: none does, or the file is unusable;
`ignored`: as the state."""

FINISHED = frozenset({"migrated", "duplicate"})
"""States with an output."""

SETTLED = FINISHED | {"ignored"}
"""States that leave nothing to be done or mended."""

BROKEN = frozenset({str(Refusal.CANNOT_WRITE), str(Refusal.CHANGED), str(Refusal.MISSING_FILE)})
"""Reasons that lie in the run, not in the file: the same file may do better another time."""


@dataclass(frozen=True)
class CatalogRecord:
    """One file (or folder that peft wrote) of a catalog.

    Energies are squared Frobenius norms. Each module of the input either is among `moved` or is
    counted once in `skipped`.

    Attributes:
        input: path below the catalog, POSIX separators.
        output: path below the output folder; None for refused files.
        verdict: how much of it can move.
        state: what became of it.
        reason: stable code of the refusal or failure.
        message: the same in a sentence; of an output, what `--method auto` chose for it, and why.
        format: key convention of the input.
        modules: in the input.
        moved: modules of the input that move, or have moved.
        skipped: modules of the input that do not, by stable reason.
        energy_in: of the input's update; None before its tensors were read.
        energy_moved: of the modules that move, before projection.
        energy_out: of the output's update.
        phi_min: smallest similarity of a module that moves, the lesser of both sides.
        phi_mean: mean of the same.
        size_in: bytes.
        size_out: bytes; predicted until there is an output.
        flags: what to know, with numbers of modules: `weak-match: 3`, `ambiguous-base: ...`.
        duplicate_of: input path of the file with the same content that is migrated for this one.
        input_hash: SHA-256 of the input's content: paths, alphas, shapes, dtypes, numbers.
        output_hash: SHA-256 of the output file's bytes (of a folder: of its files' in order).
        preview: picture carried along, below the output folder.
        seconds: of planning and writing this file, and its share of its batch.
    """

    input: str
    output: str | None
    verdict: Verdict
    state: State
    reason: str | None = None
    message: str | None = None
    format: str | None = None
    modules: int = 0
    moved: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    energy_in: float | None = None
    energy_moved: float | None = None
    energy_out: float | None = None
    phi_min: float | None = None
    phi_mean: float | None = None
    size_in: int = 0
    size_out: int | None = None
    flags: tuple[str, ...] = ()
    duplicate_of: str | None = None
    input_hash: str | None = None
    output_hash: str | None = None
    preview: str | None = None
    seconds: float | None = None

    @property
    def why(self) -> str:
        """The message without the file's name, for places where that stands beside it."""
        return (self.message or "").split(f"{self.input}: ", 1)[-1]


@dataclass(frozen=True)
class CatalogSummary:
    """A catalog as a whole.

    Attributes:
        catalog: what was migrated.
        out: the output folder.
        source: name of the source base model.
        target: name of the target base model.
        options: of the migration, those that differ from their defaults, and the method.
        files: number of records.
        by_state: number of records by state.
        by_verdict: the same by verdict.
        by_reason: the same by code of refusal or failure.
        verified: `checked`, `ok`, `failed` and `recomputed` of the last `prolora verify`; None
            before one.
        relation: the sentence about the two base models; None before they were compared.
        started: of the last run, ISO 8601, UTC; None of a look without a run.
        finished: of the last run; None while it goes on, or when it was killed.
        seconds: that the last run took; None before it ended.
    """

    catalog: str
    out: str
    source: str
    target: str
    options: dict[str, object]
    files: int
    by_state: dict[str, int]
    by_verdict: dict[str, int]
    by_reason: dict[str, int]
    verified: dict[str, int] | None = None
    relation: str | None = None
    started: str | None = None
    finished: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Counts:
    """Numbers of records, by what they say."""

    files: int
    by_state: dict[str, int]
    by_verdict: dict[str, int]
    by_reason: dict[str, int]


def count_records(records: Iterable[CatalogRecord]) -> Counts:
    """Count records by state, verdict and reason, the most frequent first."""
    states: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for record in records:
        states[record.state] += 1
        verdicts[record.verdict] += 1
        if record.reason is not None:
            reasons[record.reason] += 1
    found = (dict(counter.most_common()) for counter in (states, verdicts, reasons))
    return Counts(states.total(), *found)


def failed_record(record: CatalogRecord, code: object, message: str) -> CatalogRecord:
    """A record of a file that has no output: refused, or failed where that lies in the run.

    Args:
        record: of the file.
        code: stable reason.
        message: the same in a sentence.
    """
    state = "failed" if str(code) in {*BROKEN, str(Refusal.OUTPUT_EXISTS)} else "refused"
    return replace(
        record, verdict="refused", state=state, reason=str(code), message=message, size_out=None
    )
