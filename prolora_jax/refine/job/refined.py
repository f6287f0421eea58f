"""Adapters of one pair refined: three phases, one net on the device, all of it kept on disk.

1. the target draws T and answers half of all rows;
2. the source draws S and answers the same rows; then, with each adapter, it tries the words, draws
   A, and answers that adapter's own rows;
3. the target says how well it knows S, which decides for each adapter whether it is refined,
   retaught or left a copy; it answers the adapter's rows, and the student is fitted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.outputs.work_folder import WorkFolder
from prolora_jax.nets.adapters.lora import attached_places
from prolora_jax.nets.adapters.tree import spec_of
from prolora_jax.nets.pipelines.devices import devices_of, on_all
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.unet.loading import Params
from prolora_jax.plans.refined import FromZero, Refined
from prolora_jax.refine import guard, triggers
from prolora_jax.refine.fitting import (
    FitState,
    RefineOptions,
    fit,
    new_state,
    require_numbers,
)
from prolora_jax.refine.job import effect, shared
from prolora_jax.refine.job.base_net import BaseNet, Spoken
from prolora_jax.refine.job.kept_state import keep_state, kept_state
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.job.student import (
    answers_of,
    factors_of,
    start_of,
    student_net,
    with_factors,
)
from prolora_jax.refine.rows import Rows, joined
from prolora_jax.refine.teacher import effect_mismatch

Load = Callable[[], tuple[Pipeline, Params]]
ADAPTER = "adapter"


@dataclass(frozen=True, eq=False)
class ToRefine:
    """One adapter that is to be refined.

    Attributes:
        given: fitted to the source.
        copied: the same on the target, as `migrate` made it: LoRA alone; without modules where
            nothing can be copied.
        from_zero: rank of the modules that cannot be copied, by path in the target.
        words: of its own; none of the recipe's prompts.
        name: of its work folder.
    """

    given: Adapter
    copied: Adapter
    from_zero: Mapping[str, int]
    words: tuple[str, ...]
    name: str


class RefinedAdapter(NamedTuple):
    """What came of one adapter.

    Attributes:
        adapter: for the target; the very copy where the guard keeps it.
        record: for its report.
    """

    adapter: Adapter
    record: Refined


class PairRefinement:
    """A source and a target, of which one is in memory at a time, and what was made of both.

    Attributes:
        recipe: what is asked.
        work: folder in which all that was done is kept.
        stamp: of the pair and the recipe.
    """

    def __init__(
        self,
        load_source: Load,
        load_target: Load,
        recipe: RefineRecipe,
        work: Path,
        stamp: str,
        progress: Progress = lambda stage, done, total: None,
    ):
        self.recipe, self.work, self.stamp = recipe, work, stamp
        self._loads = {"source": load_source, "target": load_target}
        self._progress = progress
        self._resident: BaseNet | None = None
        self._pair = WorkFolder(work / "pair", stamp)

    def refine(self, adapters: Sequence[ToRefine]) -> Iterator[RefinedAdapter]:
        """Refine some adapters, in their order; both base models are loaded for all of them.

        Args:
            adapters: of the source.

        Yields:
            What came of each.

        Raises:
            AdapterRefused: the next adapter cannot be taught; who asks for those after it goes on.
            ProloraError: a base model cannot be used, or its samples are no numbers.
        """
        self._pair.begin()
        target = self._target()
        source = self._source(target)
        refused: dict[str, AdapterRefused] = {}
        for one in adapters:
            try:
                self._effect(one, target)
            except AdapterRefused as reason:
                refused[one.name] = reason  # said when it is its turn
        losses = self._losses(target, source)
        for one in adapters:
            if one.name in refused:
                raise refused[one.name]
            yield self._student(one, target, source, self._effect(one, target), losses)

    def folder(self, one: ToRefine) -> WorkFolder:
        """What is kept of one adapter."""
        return WorkFolder(self.work / one.name, self.stamp_of(one.given, one.words))

    def stamp_of(self, given: Adapter, words: Sequence[str]) -> str:
        """A digest of all that an adapter's refinement depends on.

        Args:
            given: fitted to the source.
            words: of its own.
        """
        return self.recipe.stamp(self.stamp, given.fingerprint, words)

    def _net(self, name: str) -> BaseNet:
        if self._resident is None or self._resident.name != name:
            self._resident = None  # before the other is loaded
            self._progress(f"loading the {name}", 0, 1)
            loaded = self._loads[name]()
            self._progress(f"loading the {name}", 1, 1)
            self._resident = BaseNet.placed(name, loaded, self.recipe, self._progress)
        return self._resident

    def _target(self) -> shared.OfTarget:
        """Phase 1."""
        found = shared.kept_target(self._pair)
        if found is None:
            found = shared.of_target(self._net("target"), self.recipe)
            shared.keep_target(self._pair, found)
        return found

    def _source(self, target: shared.OfTarget) -> shared.OfSource:
        """Phase 2, what all adapters share."""
        found = shared.kept_source(self._pair)
        if found is None:
            found = shared.of_source(self._net("source"), target, self.recipe)
            shared.keep_source(self._pair, found)
        return found

    def _effect(self, one: ToRefine, target: shared.OfTarget) -> effect.Effect:
        """Phase 2 of one adapter."""
        work = self.folder(one)
        found = effect.kept_effect(work)
        if found is not None:
            return found
        net, words = self._net("source"), (*self.recipe.prompts, *one.words)
        adapted_net, plain = net.beside(ADAPTER, one.given), net.spoken(words)
        adapted = plain._replace(scales={ADAPTER: 1.0})
        if attached_places(adapted_net.params, ADAPTER) - {"unet"}:
            adapted = adapted_net.spoken(words, {ADAPTER: 1.0})
        found = effect.effect_of(
            effect.Speaker(net, plain),
            effect.Speaker(adapted_net, adapted),
            target,
            self.recipe,
            one.given.origin,
        )
        effect.keep_effect(work, found)
        return found

    def _losses(self, target: shared.OfTarget, source: shared.OfSource) -> dict[str, float]:
        """Phase 3, what all adapters share."""
        kept = self._pair.load("losses")
        if kept is not None:
            return {name: float(loss) for name, loss in kept.items()}
        losses = shared.losses_of(self._net("target"), target, source, self.recipe)
        self._pair.save("losses", {name: np.array(loss) for name, loss in losses.items()})
        return losses

    def _student(
        self,
        one: ToRefine,
        target: shared.OfTarget,
        source: shared.OfSource,
        found: effect.Effect,
        losses: dict[str, float],
    ) -> RefinedAdapter:
        """Phase 3 of one adapter."""
        recipe, words = self.recipe, (*self.recipe.prompts, *one.words)
        said = found.effect, found.adapted, found.on_target
        require_numbers(said, f"{one.given.origin}: what the source says with it")
        r = guard.disagreement(**losses)
        is_trigger = triggers.trigger_words(found.effect)
        style = triggers.is_style(is_trigger) if recipe.kind == "auto" else recipe.kind == "style"
        way = guard.way(r, style=style)
        largest = float(found.effect.max()) or 1.0
        record = Refined(
            way=way,
            teacher=None,
            disagreement=r,
            sentence=guard.sentence(r),
            losses=losses,
            words=words,
            effects={w: float(e) / largest for w, e in zip(words, found.effect, strict=True)},
            triggers=tuple(w for w, hit in zip(words, is_trigger, strict=True) if hit),
            is_style=style,
            stamp=self.folder(one).stamp,
        )
        if way == "copy":
            return RefinedAdapter(one.copied, record)
        net = self._net("target")
        own = net.answers(found.rows, net.spoken(words), target.shown, "target answers")
        rows = effect.lesson(target, source.plain, found, own, way, recipe)
        _require_rows(rows, one)
        start = start_of(
            factors_of(one.copied), one.from_zero, spec_of(net.params).modules, recipe.seed
        )
        size: tuple[int, int] = rows.noisy.shape[2:]
        devices = devices_of(net.mesh)
        options = recipe.fit_for(
            way,
            from_zero=not factors_of(one.copied),
            size=size,
            devices=devices,
        )
        told = on_all(jax.tree.map(jnp.asarray, self._told(one, net, words).told), net.mesh)
        remat = recipe.computes_again(options, size, devices)
        predict = student_net(net.pipeline, net.params, told, start, target.shown.last, remat=remat)
        state = self._fitted(one, predict, rows, new_state(start, options), options, net.mesh)
        require_numbers(state.factors, f"{one.given.origin}: what its student has learned")
        every = joined([target.rows, found.rows])
        before_any = np.concatenate([target.own, own])
        wanted = effect.on_source(source.plain, found)
        by_teacher = effect.of_teacher(rows, before_any, target, found, way)
        missed = [
            effect_mismatch(
                answers_of(predict, f, every, recipe.asked_at_once(size), net.mesh) - before_any,
                wanted,
            )
            for f in (start, state.factors)
        ]
        adapter = self._written(one, net, state)
        norms = {m.path: m.norm for m in adapter.modules if m.path in one.from_zero}
        record = replace(
            record,
            teacher="absolute" if way == "reteach" else recipe.teacher,
            steps=options.steps,
            loss_curve=tuple(float(x) for x in np.asarray(state.losses)),
            missed=(missed[0], missed[1]),
            missed_by_teacher=effect_mismatch(by_teacher, wanted),
            from_zero=tuple(FromZero(p, one.from_zero[p], norms[p]) for p in sorted(norms)),
        )
        return RefinedAdapter(adapter, record)

    def _told(self, one: ToRefine, net: BaseNet, words: Sequence[str]) -> Spoken:
        """What the student is told: the copied text encoders' modules count."""
        if not any(not module.path.startswith("unet.") for module in one.copied.modules):
            return net.spoken(words)
        return net.beside(ADAPTER, one.copied).spoken(words, {ADAPTER: 1.0})

    def _written(self, one: ToRefine, net: BaseNet, state: FitState) -> Adapter:
        shapes = {path: module.shape for path, module in spec_of(net.params).modules.items()}
        dtype = (one.copied.modules or one.given.modules)[0].up.dtype
        modules = with_factors(one.copied, state.factors, shapes, dtype)
        return replace(one.copied, modules=modules)

    def _fitted(
        self,
        one: ToRefine,
        predict: Any,
        rows: Rows,
        state: FitState,
        options: RefineOptions,
        mesh: Mesh | None,
    ) -> FitState:
        """The fit, taken up where it was left."""
        work = self.folder(one)

        def after(now: FitState) -> None:
            self._progress("student learns", int(now.step), options.steps)
            keep_state(work, now, options.steps)

        state = kept_state(work, state)
        return fit(predict, rows, state, options, mesh=mesh, progress=after)


def _require_rows(rows: Rows, one: ToRefine) -> None:
    """Refuse to teach a concept of which nothing was drawn, and nothing else either."""
    if len(rows.times) == 0:
        raise AdapterRefused(
            f"{one.given.origin}: found no row that shows one of its triggers, or a picture of the "
            "target that shows none; expected some; ask for more rows and pictures",
            code=Refusal.BAD_OPTION,
        )
