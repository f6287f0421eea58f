"""The arm `refine` where no file is given: the job of `prolora refine`, at home in the output.

OUT/refined/NAME.safetensors is the adapter, beside it stands its report, and OUT/refined/work holds
what was done so far: a run that was killed goes on there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prolora_jax.engines.progress import Progress
from prolora_jax.evaluation.judging.request import REFINE, Subject
from prolora_jax.migration.files import Writing
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.refined import Refined
from prolora_jax.refine.fitting import require_optax
from prolora_jax.refine.job.bases import DrawingBases, require_one_latent_space
from prolora_jax.refine.job.files import FileRefinement, RefineRequest, record_of
from prolora_jax.refine.job.recipe import RefineRecipe

_FOLDER, _WORK = "refined", "work"
_WAYS = {"refine": "refined", "reteach": "taught anew", "copy": "the guard kept the copy"}


def refined_here(subject: Subject, arms: Sequence[str], out: Path) -> Subject:
    """The subject, with the place of what is refined here if that is asked for and not given.

    Args:
        subject: the adapter.
        arms: that are asked for.
        out: folder of the evaluation.
    """
    if REFINE not in arms or REFINE in subject.own:
        return subject
    place = out / _FOLDER / f"{subject.name}.safetensors"
    return replace(subject, own={**subject.own, REFINE: place}, refines=True)


def check_refinement(bases: DrawingBases) -> None:
    """Refuse base models that nothing can be refined between, before anything is drawn.

    Raises:
        UsageError: optax is not installed.
        BaseModelError: both speak of different latents, or one is no whole pipeline.
    """
    require_optax()
    require_one_latent_space(bases)


def asked_of(options: MigrationOptions) -> RefineRequest:
    """What `prolora refine` is asked for where nobody says more.

    Args:
        options: of the migrations, of which those count that say how files are read.
    """
    read = {n: getattr(options, n) for n in ("assume_base", "alpha_zero", "factor_rank")}
    writing = Writing(format="diffusers", overwrite=True)
    return RefineRequest(RefineRecipe(), writing, MigrationOptions(method="copy", **read))


def depends_on(options: MigrationOptions, source_parts: str | None) -> dict[str, Any]:
    """What an arm refined here depends on, beside the adapter and both base models."""
    asked = asked_of(options)
    told = {"recipe": asdict(asked.recipe), "options": asdict(asked.options)}
    return told | {"source_parts": source_parts}


def refine_missing(
    subjects: Sequence[Subject],
    bases: DrawingBases,
    pair: BasePair,
    options: MigrationOptions,
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Refine what is to be refined here and is not there yet; base models are loaded for that.

    Args:
        subjects: of `refined_here`.
        bases: where both draw from.
        pair: of the same two.
        options: as `asked_of`.
        progress: called with (what, done, total).

    Raises:
        AdapterRefused: an adapter cannot be refined.
        ProloraError: a base model cannot be used, or an output not written.
    """
    places = [(subject.file, subject.own[REFINE]) for subject in subjects if subject.refines]
    if not places:
        return
    folder = places[0][1].parent
    folder.mkdir(parents=True, exist_ok=True)
    job = FileRefinement(bases, pair, asked_of(options), folder / _WORK, progress)
    todo = [(file, place) for file, place in places if not job.is_made(file, record_of(place))]
    for done in job.refine(todo):
        if done.refusal is not None:
            raise done.refusal
    job.close()


def told_of(subject: Subject) -> dict[str, Any] | None:
    """What was found when a subject's `refine` was made; None where there is no report of it."""
    place = subject.own.get(REFINE)
    record = None if place is None else record_of(place)
    return None if record is None else _facts(record)


def _facts(record: Refined) -> dict[str, Any]:
    names = ("disagreement", "sentence", "way", "is_style", "triggers", "missed")
    return {name: getattr(record, name) for name in names}


def in_words(told: Mapping[str, Any] | None) -> str:
    """R, and what followed from it; empty for nothing.

    Args:
        told: of `told_of`.
    """
    if told is None:
        return ""
    return f"R = {told['disagreement']:.3f}: {_WAYS[told['way']]}"
