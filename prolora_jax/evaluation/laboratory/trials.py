"""One adapter moved to one target, in every way that is asked for, and what came of it.

The adapter goes the way a user's does: files of base models and adapters are loaded, a plan is
made and run, and the factors of the adapter that comes out are merged into the target.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.evaluation.laboratory.adapters import (
    TrainedFactors,
    factors_of,
    total_norm,
)
from prolora_jax.evaluation.laboratory.diffusion import Predict
from prolora_jax.evaluation.laboratory.exams import Depth, exams
from prolora_jax.evaluation.laboratory.losses import losses
from prolora_jax.evaluation.laboratory.pair_samples import PairSamples
from prolora_jax.evaluation.laboratory.samples import SampleExam, SampleResult
from prolora_jax.evaluation.laboratory.workshop import Workshop
from prolora_jax.evaluation.metrics.shares import Share, gap_share
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import make_plan, run_plan
from prolora_jax.plans.options import MigrationOptions

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Result:
    """What an arm did on a target.

    Attributes:
        arrived: share of the effect's loss gap that it closed on held-out pictures.
        effect_loss: loss on pictures with the effect.
        own_loss: loss on the target's own pictures: a concept must leave it where it was.
        norm: Frobenius norm of all updates together.
        best_scale: the scale out of `SCALES` with the least effect loss on pictures apart.
        arrived_at_best: `arrived` at that scale.
        arrived_at_norm: `arrived` with the norm that `copy` has on the target.
        moved: modules with an adapter.
        skipped: modules left without one.
        mean_phi: mean similarity (smaller side) of the modules it was computed for.
        samples: what pictures made with it are like.
    """

    arrived: Share
    effect_loss: float
    own_loss: float | None
    norm: float
    best_scale: float | None
    arrived_at_best: Share | None
    arrived_at_norm: Share | None
    moved: int
    skipped: int
    mean_phi: float | None
    samples: SampleResult | None


@dataclass(frozen=True)
class TrialOutcome:
    """What a migration said.

    Attributes:
        skipped: modules left without adapter.
        phis: similarity (smaller side) of each module that moved and was compared.
    """

    skipped: int
    phis: tuple[float, ...]


def move(
    adapter: Adapter, bases: BasePair, options: MigrationOptions
) -> tuple[Adapter | None, TrialOutcome]:
    """Migrate; an adapter of which nothing can move is a result here, not an error.

    Args:
        adapter: of the source.
        bases: source and target.
        options: of the migration.

    Returns:
        The adapter on the target, None when nothing moved; and what the migration said.

    Raises:
        AdapterRefused: for any other reason.
    """
    plan = make_plan(adapter, bases, options)
    try:
        out, report = run_plan(adapter, bases, plan)
    except AdapterRefused as refusal:
        if refusal.code != Refusal.NO_MATCHING_MODULE:
            raise
        return None, TrialOutcome(len(plan.steps) + len(plan.skipped), ())
    phis = tuple(
        min(m.phi_left, m.phi_right)
        for m in report.modules
        if m.phi_left is not None and m.phi_right is not None
    )
    return out, TrialOutcome(len(report.skipped), phis)


class Pair:
    """The source and one target, with what is known of them without any adapter.

    Args:
        workshop: where both were trained.
        target: name of the target.
        source: name of the source; the one that the recipe compares the target with if empty.
        store: of subspaces; in memory if None.
        pictures: that each of both draws for what learns from samples; the laboratory's number if
            None.
    """

    def __init__(
        self,
        workshop: Workshop,
        target: str,
        source: str = "",
        store: FolderStore | None = None,
        pictures: int | None = None,
    ):
        self.workshop, self.target, self.pictures = workshop, target, pictures
        self._moved = lru_cache(maxsize=4)(self._move)
        self.source = source or workshop.recipe.source_of(target)
        self.bases = BasePair(
            load_base_model(workshop.base_folder(self.source)),
            load_base_model(workshop.base_folder(target)),
            store,
        )

    @cached_property
    def phi_half(self) -> float:
        """Mean similarity (smaller side) of all linear layers at k = half: the pair's distance.

        Not a number where no two layers can be compared, as between unlike widths.
        """
        kinds, matching = self.bases.target.spec.modules, self.bases.matching()
        wanted = {p: s for p, s in matching.pairs.items() if kinds[p].kind_is("linear")}
        options = MigrationOptions(basis_rank="fraction=0.5", identical="project")
        found = (m.similarity for m in self.bases.measure(wanted, options).values())
        phis = [min(s.phi_left, s.phi_right) for s in found if s is not None]
        return float(np.mean(phis)) if phis else float("nan")

    @cached_property
    def samples(self) -> PairSamples:
        """What both draw by themselves."""
        return PairSamples(self.workshop, self.source, self.target, self.pictures)

    def moved(
        self, adapter: str, seed: int, options: MigrationOptions
    ) -> tuple[dict[str, TrainedFactors], TrialOutcome]:
        """The source's adapter on the target, and what the migration said of it."""
        return self._moved(adapter, seed, options)

    def _move(
        self, adapter: str, seed: int, options: MigrationOptions
    ) -> tuple[dict[str, TrainedFactors], TrialOutcome]:
        file = self.workshop.adapter_file(self.source, adapter, seed)
        loaded = load_adapter(file, self.bases.source.spec)
        out, outcome = move(loaded, self.bases, options)
        return (factors_of(out) if out else {}), outcome


class Contest:
    """One adapter on one target: the exams, and the losses to compare with.

    Args:
        pair: source and target.
        adapter: name of the adapter.
        seed: of the adapter.
        depth: how much is measured.
    """

    def __init__(self, pair: Pair, adapter: str, seed: int, depth: Depth | None = None):
        self.pair, self.adapter, self.seed, self.depth = pair, adapter, seed, depth or Depth()
        workshop, target = pair.workshop, pair.target
        self.exams = exams(workshop, target, adapter, seed, self.depth)
        self.trained = workshop.factors(target, adapter, seed)
        # Of `copy`, not of the source's adapter: a pruned target has fewer modules to spread it on.
        copied, _ = pair.moved(adapter, seed, MigrationOptions(method="copy"))
        self.copied_norm = total_norm(copied)
        self.none_losses = self.effect_losses({})
        self.trained_losses = self.effect_losses(self.trained)

    def effect_losses(
        self, factors: Mapping[str, TrainedFactors], scale: float = 1.0
    ) -> np.ndarray:
        """Losses on the effect's held-out pictures, `(n,)`."""
        return losses(self._predict(factors, scale), self.exams.effect, repeats=self.exams.repeats)

    def own_loss(self, factors: Mapping[str, TrainedFactors]) -> float:
        """Loss on the target's own held-out pictures."""
        predict = self._predict(factors, 1.0)
        return float(losses(predict, self.exams.own, repeats=self.exams.own_repeats).mean())

    def best_scale(self, factors: Mapping[str, TrainedFactors]) -> float:
        """The scale with the least loss on pictures that are not held out."""
        found = {
            scale: losses(self._predict(factors, scale), self.exams.choosing, repeats=1).mean()
            for scale in SCALES
        }
        return min(found, key=lambda scale: found[scale])

    def share(self, arm_losses: np.ndarray) -> Share:
        """Share of the loss gap to the target's own adapter."""
        return gap_share(self.none_losses, arm_losses, self.trained_losses)

    def judge(
        self, factors: Mapping[str, TrainedFactors], outcome: TrialOutcome | None = None
    ) -> Result:
        """Everything that is measured of one arm."""
        plain, norm = self.effect_losses(factors), total_norm(factors)
        best = at_best = at_norm = None
        if self.depth.scales:
            best = self.best_scale(factors)
            at_best = self._share_at(factors, best, plain)
            at_norm = self._share_at(factors, self.copied_norm / norm if norm else 1.0, plain)
        return Result(
            arrived=self.share(plain),
            effect_loss=float(plain.mean()),
            own_loss=self.own_loss(factors) if self.depth.own else None,
            norm=norm,
            best_scale=best,
            arrived_at_best=at_best,
            arrived_at_norm=at_norm,
            moved=len(factors),
            skipped=outcome.skipped if outcome else 0,
            mean_phi=float(np.mean(outcome.phis)) if outcome and outcome.phis else None,
            samples=self.sample_exam.judge(factors) if self.depth.samples else None,
        )

    def judge_net(self, predict: Predict) -> Result:
        """The same of a net in the target's place, with no adapter to be scaled or counted."""
        plain = losses(predict, self.exams.effect, repeats=self.exams.repeats)
        own = None
        if self.depth.own:
            own = float(losses(predict, self.exams.own, repeats=self.exams.own_repeats).mean())
        return Result(
            arrived=self.share(plain),
            effect_loss=float(plain.mean()),
            own_loss=own,
            norm=0.0,
            best_scale=None,
            arrived_at_best=None,
            arrived_at_norm=None,
            moved=0,
            skipped=0,
            mean_phi=None,
            samples=self.sample_exam.judge_net(predict) if self.depth.samples else None,
        )

    @cached_property
    def sample_exam(self) -> SampleExam:
        """How pictures are judged; its classifier is trained when it is first needed."""
        return SampleExam(self.pair.workshop, self.pair.target, self.adapter)

    @cached_property
    def facts_of_none(self) -> dict[str, float]:
        """Losses of the target without adapter."""
        return {"effect_loss": float(self.none_losses.mean()), "own_loss": self.own_loss({})}

    @cached_property
    def facts_of_trained(self) -> dict[str, float]:
        """Losses with the adapter that was trained on the target."""
        effect, own = self.trained_losses.mean(), self.own_loss(self.trained)
        return {"effect_loss": float(effect), "own_loss": own}

    def _share_at(
        self, factors: Mapping[str, TrainedFactors], scale: float, plain: np.ndarray
    ) -> Share:
        """The share at a scale; `plain` are the losses at 1."""
        even = abs(scale - 1) < 1e-3
        return self.share(plain if even else self.effect_losses(factors, scale))

    def _predict(self, factors: Mapping[str, TrainedFactors], scale: float):
        return self.pair.workshop.predict(self.pair.target, factors, scale)
