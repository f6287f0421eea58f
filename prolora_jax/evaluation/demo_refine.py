"""The demo's arm that learns: the style copied, then taught by what the two nets draw themselves.

It is the laboratory's `refine`, with a low budget, and its output a file like any other: with the
report of the copy, and in it what the student has seen.
"""

from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.engines.progress import Progress
from prolora_jax.evaluation.demo import style_file
from prolora_jax.evaluation.laboratory.refining import (
    AdapterSamples,
    StudentFacts,
    StudentSettings,
    fitted,
)
from prolora_jax.evaluation.laboratory.trials import Contest
from prolora_jax.evaluation.metrics.shares import Share
from prolora_jax.migration.files import Writing, read_fitted, write_migrated
from prolora_jax.migration.single import plan_fitted, run_plan, with_provenance
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.refined import Refined
from prolora_jax.plans.report import MigrationReport
from prolora_jax.refine import guard
from prolora_jax.refine.job.files import refined_report
from prolora_jax.refine.job.student import with_factors

BUDGET = StudentSettings(rows=256, steps=50)
COPIED = MigrationOptions(method="copy")
WRITING = Writing("lora", overwrite=True)


def refine_style(
    contest: Contest, output: Path, progress: Progress = lambda stage, done, total: None
) -> MigrationReport:
    """Copy the demo's style, teach it on the target, and write it with its report.

    Args:
        contest: the style on the pruned net.
        output: file to write.
        progress: called with (what, done, total).

    Returns:
        The report.

    Raises:
        OutputError: the file cannot be written.
    """
    pair = contest.pair.bases
    given = read_fitted(style_file(), pair.source, COPIED, WRITING)
    plan = plan_fitted(given, pair, COPIED)
    copied, report = run_plan(given.adapter, pair, plan)
    shown = _drawn(contest, progress)
    factors, facts = fitted(shown, "refine", BUDGET, progress)
    spec = pair.target.spec
    shapes = {path: module.shape for path, module in spec.modules.items()}
    modules = with_factors(copied, factors, shapes, copied.modules[0].up.dtype)
    learned = replace(copied, modules=modules)
    report = refined_report(report, learned, _record(contest, shown, facts, given.adapter))
    write_migrated(with_provenance(learned, report, spec), report, output, spec, WRITING)
    return report


def _drawn(contest: Contest, progress: Progress) -> AdapterSamples:
    """All that is drawn for the student, and R: what is made once is kept by the samples."""
    shown = AdapterSamples(contest)
    parts = (
        lambda: shown.samples.pool_of_target,
        lambda: shown.effects,
        lambda: shown.pool,
        lambda: shown.samples.losses,
    )
    for done, part in enumerate(parts):
        progress("both nets draw", done, len(parts))
        part()
    progress("both nets draw", len(parts), len(parts))
    return shown


def facts_of_refine(contest: Contest, report: MigrationReport) -> dict[str, Any]:
    """What the summary says of the arm beside its row.

    Args:
        contest: it was judged by.
        report: of its output.
    """
    record = report.refined
    assert record is not None
    return {
        "disagreement": record.disagreement,
        "sentence": record.sentence,
        "pictures": contest.pair.samples.pictures,
        "rows": BUDGET.rows,
        "steps": record.steps,
        "effect_missed": record.missed,
    }


def against_copy(refined: Share, copied: Share) -> str:
    """Whether the arm is worth its steps, in one sentence.

    Args:
        refined: share of the style that arrived, with its interval.
        copied: the same of the copy.
    """
    both = f"{refined.value:.1%} of the style where copy brings {copied.value:.1%}"
    if refined.low > copied.high:
        return f"refine brings {both}."
    if refined.high < copied.low:
        return f"refine brings only {both}: keep the copy."
    return f"refine brings {both}, which is no clear difference: the copy is enough."


def _record(
    contest: Contest, shown: AdapterSamples, facts: StudentFacts, given: Adapter
) -> Refined:
    samples, words = contest.pair.samples, [str(word) for word in range(len(shown.effects))]
    largest = float(np.max(shown.effects)) or 1.0
    pair = contest.pair.bases
    nets = [m.fingerprints(sorted(m.spec.modules)) for m in (pair.source, pair.target)]
    asked = [asdict(BUDGET), samples.pictures, given.fingerprint, nets]
    return Refined(
        way="refine",
        teacher=BUDGET.teacher,
        disagreement=samples.disagreement,
        sentence=guard.sentence(samples.disagreement),
        losses=samples.losses,
        words=tuple(words),
        effects={w: float(e) / largest for w, e in zip(words, shown.effects, strict=True)},
        triggers=tuple(words[place] for place in facts.triggers),
        is_style=facts.style,
        stamp=sha256(msgspec.json.encode(asked)).hexdigest(),
        steps=facts.steps,
        loss_curve=facts.curve,
        missed=facts.mismatch,
    )
