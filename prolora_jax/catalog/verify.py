"""A migrated catalog, checked: every output is as it was written, and a sample is recomputed."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

from prolora_jax.engines.progress import Progress
from prolora_jax.errors import ProloraError
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.outputs.catalog_files import file_hash
from prolora_jax.io.outputs.manifest import Manifest
from prolora_jax.plans.catalog_record import FINISHED, CatalogRecord
from prolora_jax.verification.file import verify_file
from prolora_jax.verification.recompute import Thoroughness
from prolora_jax.verification.result import VerifyReport
from prolora_jax.verification.sampling import Sample, new_seed


@dataclass(frozen=True)
class CatalogCheck:
    """What a check of a catalog found.

    Attributes:
        outputs: that there should be.
        whole: of them, as they were written.
        recomputed: of them, on the dense float64 path.
        worst_error: of those, relative to the input's norm.
        problems: what is wrong, by input path.
        modules: how many projected modules of the recomputed outputs were; its seed chose both
            outputs and modules.
        learned: outputs whose modules samples have taught, which no weight says, by input path: all
            else of them was checked, and nothing is wrong.
    """

    outputs: int
    whole: int
    recomputed: int
    worst_error: float
    problems: dict[str, str]
    modules: Sample = Sample(0, 0)
    learned: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and all that was to be recomputed was."""
        return not (self.problems or self.learned)


def verify_catalog(
    out: str | Path,
    sample: int | None = 20,
    seed: str | None = None,
    progress: Progress | None = None,
    *,
    allow_pickle: bool = False,
    workers: int = 1,
) -> CatalogCheck:
    """Check the outputs of a run.

    Args:
        out: the output folder.
        sample: how many outputs are recomputed; None for all, and then every module of them.
        seed: of an earlier check, to choose what that has chosen; a new one when None, so that
            nobody who writes outputs can know which ones are looked at.
        progress: called with ("verify", done, total).
        allow_pickle: whether inputs that are pickles are read, to recompute their outputs.
        workers: processes that recompute modules, where a file has many large ones.

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
        seed = seed or new_seed()
        chosen = {r.input for r in random.Random(seed).sample(firsts, count)}
        problems: dict[str, str] = {}
        learned: dict[str, str] = {}
        how_much = Thoroughness(sample is None, seed, workers)
        check_file = partial(
            verify_file,
            allow_pickle=allow_pickle,
            quiet=True,
            open_model=cache(load_base_model),
            thoroughness=how_much,
        )
        worst, recomputed, whole, modules = 0.0, 0, 0, Sample(0, 0)
        for place, record in enumerate(records, 1):
            problem = _damage(out, record)
            whole += problem is None
            if problem is None and record.input in chosen:
                problem, error, drawn, taught = _recomputed(out / str(record.output), check_file)
                if taught is not None:
                    learned[record.input] = taught
                recomputed += taught is None
                worst, modules = max(worst, error), modules.with_more(drawn)
            if problem is not None:
                problems[record.input] = problem
            if progress is not None:
                progress("verify", place, len(records))
        modules = replace(modules, seed=seed if sample is not None else None)
        check = CatalogCheck(len(records), whole, recomputed, worst, problems, modules, learned)
        manifest.set_facts(
            verified={
                "checked": check.outputs,
                "ok": check.outputs - len(problems) - len(learned),
                "failed": len(problems),
                "recomputed": recomputed,
                **({"learned": len(learned)} if learned else {}),
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


def _recomputed(
    path: Path, check: Callable[[Path], VerifyReport]
) -> tuple[str | None, float, Sample, str | None]:
    """What is wrong with an output, its largest error, what was recomputed, what was learned."""
    try:
        checked = check(path)
    except (ProloraError, OSError) as error:
        return f"cannot be recomputed: {error}", 0.0, Sample(0, 0), None
    worst, sample = checked.worst_error, checked.sample
    if checked.ok:
        return None, worst, sample, None
    if checked.verdict == "not-compared":
        absent = ", ".join(checked.absent)
        return f"not compared: its input is not there: {absent}", 0.0, sample, None
    if checked.verdict == "learned":
        taught = f"not recomputed: {checked.learned} modules were learned from samples"
        return None, worst, sample, taught
    bad = [f"{m.path}: {'; '.join(m.problems)}" for m in checked.modules if m.problems]
    return "; ".join([*checked.problems, *bad][:3]), worst, sample, None
