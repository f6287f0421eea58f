"""What came of a check: module by module, and for the file as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prolora_jax.verification.sampling import Sample


@dataclass(frozen=True)
class ModuleCheck:
    """What came of one module.

    Attributes:
        path: module of the target.
        source_path: module of the source.
        action: `project`, `copy` or `skip`.
        verdict: `failed` when there are problems; `undetermined` when a cut falls between equal
            singular values, so that there is no one right answer; `not-compared` when the input
            is not there; `not-recomputed` when the draw left it out, and nothing is wrong with
            its names, shapes, numbers and norms; else `verified`.
        error: ||file - recomputed||_F / ||input||_F, before `--rescale` and `--scale` and without
            what the best approximation of the rank asked for misses; None when there is nothing
            to compare. Of an undetermined module only what every cut has in common is compared.
        allowed: largest error that the dtype explains.
        problems: what is wrong.
    """

    path: str
    source_path: str
    action: Literal["project", "copy", "skip"]
    verdict: Literal["verified", "undetermined", "not-compared", "not-recomputed", "failed"]
    error: float | None = None
    allowed: float | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """What came of a file.

    Attributes:
        ok: nothing failed, and the factors were compared.
        worst_error: largest error of a module that could be compared, 0 when there is none.
        counts: number of modules by verdict.
        modules: moved modules, and skipped ones whose reason was recomputed.
        problems: what is wrong with the file, its header and its report as a whole.
        not_checked: what no weight, name or number says anything about, in sentences.
        absent: adapters that the file was made from and that are not there. Its factors were
            then not compared with anything, and only the rest was checked.
        sample: how many of the projected modules were recomputed.
        learned: modules that `prolora refine` has taught, by the report.
    """

    ok: bool
    worst_error: float
    counts: dict[str, int]
    modules: tuple[ModuleCheck, ...]
    problems: tuple[str, ...]
    not_checked: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    sample: Sample = Sample(0, 0)
    learned: int = 0

    @property
    def verdict(self) -> Literal["verified", "failed", "not-compared", "learned"]:
        """In one word: `not-compared` when nothing is wrong but the input is not there.

        `learned` when nothing is wrong but modules were learned from samples: a report that says so
        is not believed, and nothing else tells what their factors should be.
        """
        if self.ok:
            return "verified"
        if self.problems or self.counts.get("failed"):
            return "failed"
        if self.absent:
            return "not-compared"
        return "learned" if self.learned else "failed"


def with_problems(checked: VerifyReport, problems: Sequence[str]) -> VerifyReport:
    """A check, with what else is wrong with the file as a whole.

    Args:
        checked: so far.
        problems: in sentences; none leave it as it is.
    """
    if not problems:
        return checked
    return replace(checked, ok=False, problems=tuple(sorted((*checked.problems, *problems))))
