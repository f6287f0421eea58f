"""Scores of every arm: means with intervals, and paired differences to a copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.encoders import load_encoder, load_lpips
from prolora_jax.evaluation.judging.metrics import METRICS, Metric
from prolora_jax.evaluation.judging.request import TRAINED, DrawnSet
from prolora_jax.evaluation.judging.texts import embed_prompts
from prolora_jax.evaluation.metrics.intervals import difference_interval, mean_interval
from prolora_jax.evaluation.metrics.lpips_diversity import lpips_diversity
from prolora_jax.evaluation.metrics.shares import Share
from prolora_jax.evaluation.scoring import embed, lpips_distances
from prolora_jax.io.judging.pictures import Rejected, picture_files
from prolora_jax.nets.pipelines.devices import mesh_of_all

COPY = "copy"
"""The arm that every other is compared with."""


@dataclass(frozen=True)
class Judging:
    """What pictures are judged by.

    Attributes:
        metrics: names of `METRICS`.
        tokenizer: folder of CLIP's tokenizer, where none stands beside the weights.
        weights_dir: folder of encoders; None for the hub.
        references: folder of pictures of the subject; None for the pictures of the arm `trained`.
        at_once: pictures embedded together on each device.
        keep: folder where embeddings stay.
    """

    metrics: tuple[str, ...]
    weights_dir: Path | None = None
    tokenizer: Path | None = None
    references: Path | None = None
    at_once: int = 8
    keep: Path | None = None


class ArmScore(NamedTuple):
    """What a metric says of an arm.

    Attributes:
        value: the mean, or the number of the set.
        interval: 95 %, by bootstrap over prompts; None for numbers of sets.
        against_copy: the difference over the same pictures; None for `copy`, and for sets.
        details: what a number of a set depends on.
        pictures: scores by picture, in the order of `DrawnSet.pictures`; empty for sets.
    """

    value: float
    interval: tuple[float, float] | None
    against_copy: Share | None
    details: dict[str, Any]
    pictures: list[float]


class Judged(NamedTuple):
    """All scores of a subject.

    Attributes:
        scores: by metric and arm; without the arm that the metric compares with.
        references: what the metrics that need references compared with; None where none does.
    """

    scores: dict[str, dict[str, ArmScore]]
    references: str | None


def check_metrics(judging: Judging, arms: Sequence[str], seeds: int) -> None:
    """Refuse metrics that these arms cannot be judged by, before anything is drawn.

    Raises:
        UsageError: a metric is not known, what it compares with is not there, or something is there
            that none compares with.
    """
    known = [METRICS[name].beside for name in judging.metrics if name in METRICS]
    idle = {"tokenizer": "prompts", "references": "references"}
    for option, beside in idle.items():
        if getattr(judging, option) is not None and beside not in known:
            raise UsageError(
                f"--{option}: found it beside --metrics {','.join(judging.metrics)}, where it does "
                f"nothing; expected a metric that compares with {beside}; leave it out",
                code=Refusal.BAD_OPTION,
            )
    for name in judging.metrics:
        expected = None
        if name not in METRICS:
            expected = f"one of {', '.join(METRICS)}"
        elif METRICS[name].beside == "references":
            if judging.references is None and TRAINED not in arms:
                expected = "--references DIR or --trained FILE with it, to compare with"
        elif METRICS[name].beside == "itself" and seeds < 2:
            expected = "two seeds or more with it"
        if expected is not None:
            raise UsageError(f"--metrics {name}: expected {expected}", code=Refusal.BAD_OPTION)
    if judging.references is not None:
        picture_files(judging.references)


def check_encoders(judging: Judging) -> None:
    """Refuse encoders that cannot judge, before hours of drawing: each is loaded once to see.

    Raises:
        UsageError: an encoder's file, or a tokenizer, is not there.
        BaseModelError: an encoder's file is another net's, or damaged.
    """
    for name in dict.fromkeys(METRICS[name].encoder for name in judging.metrics):
        if name == "lpips":
            load_lpips(judging.weights_dir)
            continue
        load_encoder(name, judging.weights_dir)
        asks = any(
            METRICS[other].encoder == name and METRICS[other].beside == "prompts"
            for other in judging.metrics
        )
        if asks:
            embed_prompts(name, ("a",), judging.weights_dir, judging.tokenizer)


def judge(
    found: DrawnSet, judging: Judging, progress: Progress = lambda stage, done, total: None
) -> Judged:
    """Judge the pictures of a subject, all of them drawn.

    Args:
        found: the pictures.
        judging: by what.
        progress: called with (what, done, total).

    Raises:
        UsageError: a picture cannot be read, or an encoder's file is not there.
        BaseModelError: an encoder's file is another net's, or damaged.
    """
    files = {arm: [found.path(p) for p in found.pictures(arm)] for arm in found.arms}
    prompts = [p.prompt for p in found.pictures(found.arms[0])]
    needs = any(METRICS[name].beside == "references" for name in judging.metrics)
    looked: dict[str, _Looked] = {}
    scores: dict[str, dict[str, ArmScore]] = {}
    for name in judging.metrics:
        metric = METRICS[name]
        if metric.beside == "itself":
            scores[name] = _diversity(found, judging, progress)
            continue
        if metric.encoder not in looked:  # an encoder is let go before the next is loaded
            compares = any(
                METRICS[other].encoder == metric.encoder and METRICS[other].beside == "references"
                for other in judging.metrics
            )
            looked[metric.encoder] = _look(metric.encoder, files, judging, compares, progress)
        seen = looked[metric.encoder]
        others = seen.references
        if metric.beside == "prompts":
            where = judging.weights_dir, judging.tokenizer
            others = embed_prompts(metric.encoder, found.prompts, *where)[prompts]
        of_itself = metric.beside == "references" and judging.references is None
        scores[name] = _scores(metric, seen, others, prompts, TRAINED if of_itself else None)
    said = None
    if needs:
        said = str(judging.references) if judging.references is not None else TRAINED
    return Judged(scores, said)


class _Looked(NamedTuple):
    """Embeddings by one encoder: of each arm's pictures, and of the references."""

    arms: dict[str, Float[np.ndarray, "n width"]]
    references: Float[np.ndarray, "m width"]


def _look(
    name: str,
    files: Mapping[str, list[Path]],
    judging: Judging,
    compares: bool,
    progress: Progress,
) -> _Looked:
    encoder = load_encoder(name, judging.weights_dir)

    def seen(paths: Sequence[Path], what: str) -> np.ndarray:
        rows = []
        how = {"at_once": judging.at_once, "keep": judging.keep, "mesh": mesh_of_all()}
        for one in embed(encoder, paths, **how):
            if isinstance(one, Rejected):
                raise UsageError(
                    f"{one.path}: {one.reason}; expected a picture; draw it again, or leave it out",
                    code=Refusal.MISSING_FILE,
                )
            rows.append(one.embedding)
            progress(f"{name}: {what}", len(rows), len(paths))
        return np.stack(rows)

    arms = {arm: seen(paths, arm) for arm, paths in files.items()}
    if compares and judging.references is not None:
        return _Looked(arms, seen(picture_files(judging.references), "references"))
    return _Looked(arms, arms.get(TRAINED, np.zeros((0, encoder.width), np.float32)))


def _scores(
    metric: Metric,
    seen: _Looked,
    others: np.ndarray,
    prompts: Sequence[int],
    left_out: str | None,
) -> dict[str, ArmScore]:
    """Scores by arm; an arm that the others are compared with has none beside itself."""
    arms = {arm: rows for arm, rows in seen.arms.items() if arm != left_out}
    if metric.of_sets is not None:
        found = {arm: metric.of_sets(rows, others) for arm, rows in arms.items()}
        return {
            arm: ArmScore(told.pop("value"), None, None, told, []) for arm, told in found.items()
        }
    if metric.of_pictures is None:
        raise ValueError("a metric has scores of pictures or of sets")
    scores = {arm: metric.of_pictures(rows, others) for arm, rows in arms.items()}
    return {arm: _score(arm, scores, prompts) for arm in scores}


def _score(
    arm: str, scores: Mapping[str, Float[np.ndarray, " n"]], prompts: Sequence[int]
) -> ArmScore:
    mean = mean_interval(scores[arm], groups=prompts)
    beside = None
    if COPY in scores and arm != COPY:
        beside = difference_interval(scores[arm], scores[COPY], groups=prompts)
    return ArmScore(mean.value, (mean.low, mean.high), beside, {}, scores[arm].tolist())


def _diversity(found: DrawnSet, judging: Judging, progress: Progress) -> dict[str, ArmScore]:
    """Mean LPIPS of two pictures of one prompt, prompt by prompt."""
    net, params = load_lpips(judging.weights_dir)
    means: dict[str, Float[np.ndarray, " prompts"]] = {}
    for arm in found.arms:
        values = []
        for place in range(len(found.prompts)):
            files = [found.path(p) for p in found.pictures(arm) if p.prompt == place]
            progress(f"lpips: {arm}", place, len(found.prompts))
            distances = lpips_distances(net, params, files, at_once=judging.at_once)
            values.append(lpips_diversity(distances))
        means[arm] = np.array(values)
    places = range(len(found.prompts))
    return {arm: _score(arm, means, places)._replace(pictures=[]) for arm in means}
