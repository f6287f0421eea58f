"""`prolora evaluate` as one job: draw what is missing, judge all, write what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.drawer import NONE
from prolora_jax.evaluation.judging.arms import HowToDraw, drawer_for, drawn_set
from prolora_jax.evaluation.judging.drawing import draw_missing, missing
from prolora_jax.evaluation.judging.given import GivenSet
from prolora_jax.evaluation.judging.judge import Judging, check_encoders, check_metrics, judge
from prolora_jax.evaluation.judging.metrics import METRICS, Metric
from prolora_jax.evaluation.judging.page import write_page
from prolora_jax.evaluation.judging.protocols import PLANS, Protocol
from prolora_jax.evaluation.judging.request import DrawnSet, Picture, Subject
from prolora_jax.evaluation.judging.tables import write_tables
from prolora_jax.evaluation.judging.taught import (
    check_refinement,
    refine_missing,
    refined_here,
    told_of,
)
from prolora_jax.io.base_models.pipeline_files import pipeline_files
from prolora_jax.io.documents import read_json, write_json
from prolora_jax.io.outputs.lock import locked
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.refine.job.bases import DrawingBases
from prolora_jax.subspaces.store import BasisStore

_NO = Metric("", "itself", None)
PICTURES, DOCUMENT, _MOVED = "pictures", "evaluation.json", "moved.json"


@dataclass(frozen=True)
class Evaluation:
    """What is to be drawn and judged.

    Attributes:
        subjects: the adapters, each by itself.
        source: base model that they were trained on.
        how: the target draws.
        arms: ways to have an adapter there.
        prompts: what is drawn.
        seeds: of the noise; each prompt with each, the same noise for all arms.
        judging: by what.
        options: of the migrations.
        protocol: whose published numbers stand beside ours.
        source_parts: pipeline from which `refine`, where it is made here, takes everything but the
            source's UNet.
    """

    subjects: tuple[Subject, ...]
    source: str
    how: HowToDraw
    arms: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    judging: Judging
    options: MigrationOptions
    protocol: Protocol | None = None
    source_parts: str | None = None

    @property
    def bases(self) -> DrawingBases:
        """Where both base models draw from."""
        return DrawingBases(
            source=Path(self.source),
            target=Path(self.how.target),
            source_parts=None if self.source_parts is None else Path(self.source_parts),
            target_parts=None if self.how.parts is None else Path(self.how.parts),
            dtype=self.how.dtype,
        )


def evaluate(
    asked: Evaluation,
    out: Path,
    *,
    store: BasisStore | None = None,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Draw, judge, and write `evaluation.json`, tables, plots and `index.html`.

    Args:
        asked: what.
        out: folder; the same command again draws and judges only what is missing.
        store: where subspaces are found and kept; memory when None.
        workers: processes for what has to be computed.
        progress: called with (what, done, total).

    Returns:
        The content of `evaluation.json`.

    Raises:
        UsageError: no prompts or seeds; an arm that cannot be drawn, or a metric measured.
        ProloraError: a file cannot be used; another command is at work in `out`.
    """
    if not asked.prompts or not asked.seeds:
        raise UsageError(
            f"{len(asked.prompts)} prompts, {len(asked.seeds)} seeds: expected at least one of "
            f"each; give --prompts FILE",
            code=Refusal.BAD_OPTION,
        )
    check_metrics(asked.judging, asked.arms, len(asked.seeds))
    asked.how.check()
    judging = _with_tokenizer(asked)
    subjects = [refined_here(subject, asked.arms, out) for subject in asked.subjects]
    asked = replace(asked, subjects=tuple(subjects))
    shared = asked.arms, asked.prompts, asked.seeds, asked.how, asked.source, asked.options
    where = out / PICTURES, asked.source_parts
    sets = [drawn_set(subject, *shared, *where) for subject in subjects]
    left = [missing(found, asked.arms) for found in sets]
    if any(left):
        check_encoders(judging)
        if any(subject.refines for subject in subjects):
            check_refinement(asked.bases)
    with locked(out):
        _draw(asked, sets, left, store, workers, progress)
        judged = [
            {
                "name": subject.name,
                "file": str(subject.file),
                "own": {arm: str(path) for arm, path in subject.own.items()},
                "scale": subject.scale,
                "moved": read_json(found.folder / _MOVED) or {},
                "refined": told_of(subject),
                **_judged(found, judging, progress),
            }
            for subject, found in zip(subjects, sets, strict=True)
        ]
        document = {
            "source": asked.source,
            "target": asked.how.target,
            "protocol": asked.protocol,
            "published": _published(asked.protocol),
            "settings": asked.how.told(),
            "subjects": judged,
        }
        return _written(document, judging, sets, out)


def evaluate_given(
    found: GivenSet,
    judging: Judging,
    out: Path,
    *,
    protocol: Protocol | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Judge pictures that another program drew, and write what `evaluate` writes.

    Args:
        found: the pictures, a folder for each arm.
        judging: by what.
        out: folder for what is written.
        protocol: whose published numbers stand beside ours.
        progress: called with (what, done, total).

    Returns:
        The content of `evaluation.json`.

    Raises:
        UsageError: a picture cannot be read, or a metric not measured.
        ProloraError: an encoder cannot be used; another command is at work in `out`.
    """
    asks = [name for name in judging.metrics if METRICS.get(name, _NO).beside == "prompts"]
    if asks and not found.told:
        raise UsageError(
            f"--metrics {asks[0]}: expected --prompts FILE with it, what the pictures show: a line "
            f"for each prompt, in the order of the pictures",
            code=Refusal.BAD_OPTION,
        )
    check_metrics(judging, found.arms, len(found.seeds))
    with locked(out):
        folders = ", ".join(str(files[0].parent) for files in found.files.values())
        subject = {"name": "pictures", "file": folders, "own": {}, "scale": 1.0, "moved": {}}
        subject["refined"] = None
        document = {
            "source": None,
            "target": None,
            "protocol": protocol,
            "published": _published(protocol),
            "settings": {},
            "subjects": [subject | _judged(found, judging, progress)],
        }
        return _written(document, judging, [found], out)


def _with_tokenizer(asked: Evaluation) -> Judging:
    """Where nobody names a tokenizer, the target's own reads prompts for the encoders, too."""
    if asked.judging.tokenizer is not None:
        return asked.judging
    files = pipeline_files(asked.how.target, asked.how.parts)
    return replace(asked.judging, tokenizer=files.tokenizer("text_encoder"))


def _published(protocol: Protocol | None) -> list[dict[str, Any]]:
    return [] if protocol is None else [asdict(row) for row in PLANS[protocol].published]


def _judged(found: DrawnSet, judging: Judging, progress: Progress) -> dict[str, Any]:
    judged = judge(found, judging, progress)
    scores = {
        metric: {arm: score._asdict() for arm, score in by_arm.items()}
        for metric, by_arm in judged.scores.items()
    }
    return {"references": judged.references, "scores": scores}


def _written(
    found: Mapping[str, Any], judging: Judging, sets: Sequence[DrawnSet], out: Path
) -> dict[str, Any]:
    """Write everything but the pictures; the document last, which says that all is there."""
    first = sets[0]
    document = {
        **found,
        "arms": first.arms,
        "metrics": judging.metrics,
        "prompts": first.prompts,
        "seeds": first.seeds,
    }
    write_tables(document, sets, out)
    write_page(document, sets, out)
    write_json(out / DOCUMENT, document)
    return document


def _draw(
    asked: Evaluation,
    sets: Sequence[DrawnSet],
    left: Sequence[dict[str, list[Picture]]],
    store: BasisStore | None,
    workers: int,
    progress: Progress,
) -> None:
    """Everything that is missing; base models are loaded only if something is."""
    how, is_shared = asked.how, False
    jobs: list[tuple[Subject, DrawnSet, dict[str, list[Picture]]]] = []
    for subject, found, own in zip(asked.subjects, sets, left, strict=True):
        # What is drawn without an adapter the first subject draws for all.
        todo = {arm: pictures for arm, pictures in own.items() if arm != NONE or not is_shared}
        is_shared = is_shared or NONE in todo
        if todo:
            jobs.append((subject, found, todo))
    if not jobs:
        return
    pair = open_pair(asked.source, how.target, store, workers, asked.options.fused)
    refine_missing([job[0] for job in jobs], asked.bases, pair, asked.options, progress)
    base = how.loaded()
    for subject, found, todo in jobs:
        drawer, counts = drawer_for(subject, asked.arms, pair, base, how, asked.options, progress)
        found.folder.mkdir(parents=True, exist_ok=True)
        write_json(found.folder / _MOVED, counts)
        draw_missing(found, drawer, todo, progress)
