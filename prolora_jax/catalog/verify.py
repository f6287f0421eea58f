"""A migrated catalog, checked: every output is as it was written, and a sample is recomputed."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from prolora_jax.engines.progress import Progress
from prolora_jax.errors import ProloraError
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.outputs.catalog_files import file_hash
from prolora_jax.io.outputs.manifest import Manifest
from prolora_jax.plans.catalog_record import FINISHED, CatalogRecord
from prolora_jax.verification.file import verify_file
from prolora_jax.verification.result import VerifyReport


@dataclass(frozen=True)
class CatalogCheck:
    """What a check of a catalog found.

    Attributes:
        outputs: that there should be.
        whole: of them, as they were written.
        recomputed: of them, on the dense float64 path.
        worst_error: of those, relative to the input's norm.
        problems: what is wrong, by input path.
    """

    outputs: int
    whole: int
    recomputed: int
    worst_error: float
    problems: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_catalog(
    out: str | Path,
    sample: int | None = 20,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    allow_pickle: bool = False,
) -> CatalogCheck:
    """Check the outputs of a run.

    Args:
        out: the output folder.
        sample: how many outputs are recomputed; None for all.
        seed: of the choice.
        progress: called with ("verify", done, total).
        allow_pickle: whether inputs that are pickles are read, to recompute their outputs.

    Returns:
        What was found; also noted in the manifest.

    Raises:
        UsageError: there is no manifest in `out`.
    """
    out = Path(out)
    with Manifest(out) as manifest:
        records = [r for r in manifest.records() if r.state in FINISHED]
        firsts = [r for r in records if r.duplicate_of is None]
        count = len(firsts) if sample is None else min(sample, len(firsts))
        chosen = {r.input for r in random.Random(seed).sample(firsts, count)}
        problems: dict[str, str] = {}
        check_file = partial(
            verify_file, allow_pickle=allow_pickle, quiet=True, open_model=cache(load_base_model)
        )
        worst, recomputed, whole = 0.0, 0, 0
        for place, record in enumerate(records, 1):
            problem = _damage(out, record)
            whole += problem is None
            if problem is None and record.input in chosen:
                recomputed += 1
                problem, error = _recomputed(out / str(record.output), check_file)
                worst = max(worst, error)
            if problem is not None:
                problems[record.input] = problem
            if progress is not None:
                progress("verify", place, len(records))
        check = CatalogCheck(len(records), whole, recomputed, worst, problems)
        manifest.set_facts(
            verified={
                "checked": check.outputs,
                "ok": check.outputs - len(problems),
                "failed": len(problems),
                "recomputed": recomputed,
            }
        )
    return check


def _damage(out: Path, record: CatalogRecord) -> str | None:
    path = out / str(record.output)
    try:
        if file_hash(path) == record.output_hash:
            return None
        # Where size and time are those of the record, a run that goes on would believe them.
        found, advice = "other content", "remove it and migrate again"
    except FileNotFoundError as error:
        found, advice = error.strerror, "migrate again"
    except OSError as error:
        found, advice = error.strerror or str(error), "remove it and migrate again"
    return f"not as it was written: {path}: {found}; {advice}"


def _recomputed(path: Path, check: Callable[[Path], VerifyReport]) -> tuple[str | None, float]:
    """What is wrong with an output's numbers, and its largest error."""
    try:
        checked = check(path)
    except (ProloraError, OSError) as error:
        return f"cannot be recomputed: {error}", 0.0
    if checked.ok:
        return None, checked.worst_error
    if checked.verdict == "not-compared":
        return f"not compared: its input is not there: {', '.join(checked.absent)}", 0.0
    bad = [f"{m.path}: {'; '.join(m.problems)}" for m in checked.modules if m.problems]
    return "; ".join([*checked.problems, *bad][:3]), checked.worst_error
