"""What would become of all files that have one table of tensors: counts, size, or a refusal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.method.encoding import DTYPES
from prolora_jax.plans.catalog_record import CatalogRecord, State, Verdict
from prolora_jax.plans.companions import PARTIAL
from prolora_jax.plans.plan import Action, MigrationPlan, ModuleSimilarity, Skip, SkippedModule

_HEADER_BYTES = 220
"""Of a safetensors header per module: two tensors."""


class Moving(NamedTuple):
    """One module that moves, as far as a record counts it.

    Attributes:
        source_path: in the source.
        sides: similarity of both sides; None where it was not measured.
        flags: of the module.
    """

    source_path: str
    sides: tuple[float, float] | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Tally:
    """What becomes of a file's modules, counted; the attributes are those of `CatalogRecord`."""

    verdict: Verdict
    modules: int
    moved: int
    skipped: dict[str, int]
    phi_min: float | None
    phi_mean: float | None
    flags: tuple[str, ...]

    @staticmethod
    def of(
        moving: Sequence[Moving], skipped: Sequence[SkippedModule], flags: Sequence[str]
    ) -> "Tally":
        """Count modules, reasons, similarities and flags.

        Args:
            moving: of a plan or a report.
            skipped: of the same.
            flags: of the file.
        """
        sources = {module.source_path for module in moving}
        left = {s.source_path: s.reason for s in skipped if s.source_path not in {*sources, None}}
        reasons = Counter(str(reason) for reason in left.values())
        counts = Counter(flag for module in moving for flag in module.flags)
        counts.update(str(s.reason) for s in skipped if s.reason is Skip.NO_SOURCE_BLOCK)
        phis = [
            1.0 if module.sides is None else min(module.sides)
            for module in moving
            if module.sides is not None or "identical" in module.flags
        ]
        behind = any(flag.startswith(PARTIAL) for flag in flags)
        return Tally(
            "refused" if not moving else "partial" if left or behind else "ok",
            len(sources) + len(left),
            len(sources),
            dict(reasons.most_common()),
            min(phis, default=None),
            float(np.mean(phis)) if phis else None,
            (*flags, *(f"{flag}: {n}" for flag, n in sorted(counts.items()))),
        )

    @staticmethod
    def of_plan(plan: MigrationPlan, flags: Sequence[str] = ()) -> "Tally":
        """Count what a plan decides; `flags` of the file come after the plan's own counts."""
        moving = [
            Moving(step.source_path, _sides(step.similarity), step.flags) for step in plan.steps
        ]
        found = Tally.of(moving, plan.skipped, plan.flags)
        return replace(found, flags=(*found.flags, *flags))

    def on(self, record: CatalogRecord) -> CatalogRecord:
        """A record with these counts."""
        return replace(
            record,
            verdict=self.verdict,
            modules=self.modules,
            moved=self.moved,
            skipped=self.skipped,
            phi_min=self.phi_min,
            phi_mean=self.phi_mean,
            flags=self.flags,
        )


def _sides(similarity: ModuleSimilarity | None) -> tuple[float, float] | None:
    return None if similarity is None else (similarity.phi_left, similarity.phi_right)


class SharedRefusal(NamedTuple):
    """Why every file with one table is refused.

    Attributes:
        state: `refused`, or `failed` where something broke.
        reason: stable code.
        around: the message without the file's name: what stands before and after it.
    """

    state: State
    reason: str
    around: tuple[str, ...]

    @staticmethod
    def of(state: State, reason: str, message: str, path: Path) -> "SharedRefusal":
        """From the message about one of the files."""
        return SharedRefusal(state, reason, tuple(message.split(str(path), 1)))

    def on(self, record: CatalogRecord, path: Path) -> CatalogRecord:
        """A record that is refused for it, with the message about the file at `path`."""
        return replace(
            record,
            verdict="refused",
            state=self.state,
            reason=self.reason,
            message=str(path).join(self.around),
        )


@dataclass(frozen=True)
class Outlook:
    """What a table of tensors means for its files.

    Attributes:
        format: key convention; None where the table was refused before it was known.
        tally: of the plan; None where there is none.
        size_out: bytes of an output, predicted.
        refusal: why nothing can be done with these files; None when something can.
        job: digest of options, base weights and formats; None for refused tables.
        rank: the largest.
        pairs: source by target path of the modules that are compared.
        header: strings of the one file that this is about, where it is read whole.
    """

    format: str | None = None
    tally: Tally | None = None
    size_out: int | None = None
    refusal: SharedRefusal | None = None
    job: str | None = None
    rank: int = 0
    pairs: dict[str, str] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)

    def record(self, name: str, path: Path, size_in: int) -> CatalogRecord:
        """The record of one of the files, without an output.

        Args:
            name: of the file, below the catalog.
            path: where it is.
            size_in: its bytes.
        """
        record = CatalogRecord(
            name, None, "ok", "planned", format=self.format, size_in=size_in, size_out=self.size_out
        )
        record = record if self.tally is None else self.tally.on(record)
        return record if self.refusal is None else self.refusal.on(record, path)


def predicted_size(adapter: Adapter, plan: MigrationPlan) -> int:
    """Bytes of the output, as far as they can be told: ranks that `energy=` cuts are not known."""
    modules = {module.path: module for module in adapter.modules}
    total = 0
    for step in plan.steps:
        module, options = modules[step.source_path], plan.options.options_for(step.path)
        out, width = module.up.shape[0], module.down.size // module.rank
        twice = step.action is Action.PROJECT and options.method == "prolora"
        rank = options.output_rank.at_most(module.rank * (2 if twice else 1), module.rank)
        dtype = module.dtype if options.dtype == "same" else DTYPES[options.dtype]
        total += min(rank, out, width) * (out + width) * dtype.itemsize + _HEADER_BYTES
    rank = plan.options.output_rank
    if rank.kind == "budget" and rank.value is not None:
        total = min(total, int(rank.value) + _HEADER_BYTES * len(plan.steps))
    beside = {c.key: c.array.nbytes + _HEADER_BYTES // 2 for c in adapter.companions}
    return total + sum(beside[c.key] for c in plan.companions if c.path is not None)
