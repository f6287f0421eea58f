"""What an adapter's effect on a target is judged on: rows that no model has seen.

Of the held-out digits, the last `CHOOSING` choose the best scale, and only the others judge.
"""

from dataclasses import dataclass

import numpy as np

from prolora_jax.evaluation.laboratory.data import Pictures, concept_pictures
from prolora_jax.evaluation.laboratory.diffusion import TrainingBatch
from prolora_jax.evaluation.laboratory.distillation import jumps
from prolora_jax.evaluation.laboratory.lessons import HELD_OUT_SEED, effect_pictures, own_pictures
from prolora_jax.evaluation.laboratory.losses import exam
from prolora_jax.evaluation.laboratory.workshop import Workshop

CHOOSING = 120
HELD_OUT_JUMPS = 512


@dataclass(frozen=True)
class Depth:
    """How much is measured; what is not measured is None in a `Result`.

    Attributes:
        pictures: held-out pictures; all when there are fewer.
        repeats: noisy versions of each.
        own: whether the loss on the target's own data is measured.
        scales: whether arms are also judged at their best scale and at the norm of `copy`.
        samples: whether pictures are made and judged.
    """

    pictures: int = 400
    repeats: int = 4
    own: bool = True
    scales: bool = True
    samples: bool = False


@dataclass(frozen=True)
class Exams:
    """What an effect is judged on.

    Attributes:
        effect: held-out rows with the effect.
        own: held-out rows of the target's own data.
        choosing: rows with the effect, of other held-out pictures.
        repeats: rows of each picture in `effect`; in `choosing` it is one.
        own_repeats: rows of each picture in `own`.
    """

    effect: TrainingBatch
    own: TrainingBatch
    choosing: TrainingBatch
    repeats: int
    own_repeats: int


def exams(workshop: Workshop, target: str, name: str, seed: int, depth: Depth) -> Exams:
    """Rows for one adapter on one target.

    Denoising, but for what makes pictures in few steps: a hastened net is no denoiser any more and
    is judged by how far its jumps are from its teacher's, which has the adapter already.

    Args:
        workshop: where both were trained.
        target: name of the base model.
        name: of the adapter.
        seed: of the adapter.
        depth: how much is measured.

    Returns:
        The rows.
    """
    base, adapter = workshop.recipe.base(target), workshop.recipe.adapter(name)
    held_out = workshop.split.held_out
    count = len(held_out.words)
    apart = min(CHOOSING, count // 4)
    judging = held_out.taken(np.arange(min(depth.pictures, count - apart)))
    choosing = held_out.taken(np.arange(count - apart, count))
    hastened = base.kind == "hasten"

    def shown(pictures: Pictures, seed: int) -> Pictures:
        if adapter.kind == "speed":
            return own_pictures(base, pictures)
        if adapter.kind == "concept":
            return concept_pictures(adapter.name, len(pictures.words), seed)
        return effect_pictures(base, adapter, pictures)

    repeats = 1 if hastened else depth.repeats
    own = own_pictures(base, judging)
    if hastened:
        own_rows = jumps(workshop.predict(base.parent), own, HELD_OUT_JUMPS, HELD_OUT_SEED)
    else:
        own_rows = exam(own, repeats=repeats)
    sets = shown(judging, HELD_OUT_SEED), shown(choosing, HELD_OUT_SEED + 1)
    if hastened or adapter.kind == "speed":
        teacher = workshop.teacher(target, name, seed)
        effect = jumps(teacher, sets[0], HELD_OUT_JUMPS, HELD_OUT_SEED)
        chosen = jumps(teacher, sets[1], CHOOSING, HELD_OUT_SEED + 1)
        return Exams(effect, own_rows, chosen, 1, repeats)
    effect, chosen = exam(sets[0], repeats=repeats), exam(sets[1], repeats=1, seed=8)
    return Exams(effect, own_rows, chosen, repeats, repeats)
