"""Adapters of one pair of language models refined: both on the device, all of it kept on disk.

1. the target writes T and the source S; each says how likely it finds the other's: R;
2. with each adapter the source writes A; all three answer T and A;
3. the student, which starts from the copy, is fitted to the answers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.engines.progress import Progress
from prolora_jax.io.outputs.work_folder import WorkFolder
from prolora_jax.nets.lm.causal import CausalLm
from prolora_jax.nets.pipelines.devices import devices_of
from prolora_jax.plans.refined import FromZero, Refined
from prolora_jax.refine import guard
from prolora_jax.refine.fitting import (
    FitState,
    RefineOptions,
    fit,
    new_state,
    require_numbers,
)
from prolora_jax.refine.job.devices import mesh_for
from prolora_jax.refine.job.kept_state import keep_state, kept_state
from prolora_jax.refine.job.refined import RefinedAdapter, ToRefine
from prolora_jax.refine.job.student import factors_of, start_of, with_factors
from prolora_jax.refine.lm.answers import Teachers, TopAnswers, answers, divergence
from prolora_jax.refine.lm.pools import Texts, WritingModel, pool, surprise
from prolora_jax.refine.lm.recipe import LmRecipe
from prolora_jax.refine.lm.student import lesson, lm_student, missed
from prolora_jax.refine.rows import Rows

LoadLm = Callable[[], tuple[CausalLm, Any]]


class TextPairRefinement:
    """A source and a target that write, and what was made of both.

    Attributes:
        recipe: what is asked.
        work: folder in which all that was done is kept.
        stamp: of the pair and the recipe.
        limit: R of the guard above which the copy is kept.
    """

    def __init__(
        self,
        load_source: LoadLm,
        load_target: LoadLm,
        target: BaseModelSpec,
        tokens: Callable[[int, int], int],
        recipe: LmRecipe,
        work: Path,
        stamp: str,
        progress: Progress = lambda stage, done, total: None,
        limit: float = guard.LIMIT,
    ):
        self.recipe, self.work, self.stamp, self.limit = recipe, work, stamp, limit
        self._loads = {"source": load_source, "target": load_target}
        self._spec, self._tokens = target, tokens
        self._progress = progress
        self._loaded: dict[str, WritingModel] = {}
        self._pair = WorkFolder(work / "pair", stamp)
        self._mesh = mesh_for(recipe)

    def refine(self, adapters: Sequence[ToRefine]) -> Iterator[RefinedAdapter]:
        """Refine some adapters, in their order.

        Args:
            adapters: of the source.

        Yields:
            What came of each.

        Raises:
            AdapterRefused: the next adapter cannot be taught; who asks for those after it goes on.
            ProloraError: a base model cannot be used, or what it says is no number.
        """
        self._pair.begin()
        for one in adapters:
            yield self._refined(one)

    def folder(self, one: ToRefine) -> WorkFolder:
        """What is kept of one adapter."""
        return WorkFolder(self.work / one.name, self.stamp_of(one.given, one.words))

    def stamp_of(self, given: Adapter, words: Sequence[str]) -> str:
        """A digest of all that an adapter's refinement depends on.

        Args:
            given: fitted to the source.
            words: none: what an adapter of a language model answers to is in what it writes.
        """
        return self.recipe.stamp(self.stamp, given.fingerprint, words)

    def _speaker(self, name: str) -> WritingModel:
        if name not in self._loaded:
            self._progress(f"loading the {name}", 0, 1)
            self._loaded[name] = WritingModel.placed(*self._loads[name](), self._mesh)
            self._progress(f"loading the {name}", 1, 1)
        return self._loaded[name]

    def _vocabulary(self) -> int:
        sizes = (self._speaker(name).model.config.vocab_size for name in ("source", "target"))
        return self._tokens(*sizes)

    def _pool(self, work: WorkFolder, name: str, speaker: WritingModel) -> Texts:
        kept = work.load(name)
        if kept is not None:
            return Texts(kept["ids"], kept["real"].astype(bool))
        found = pool(speaker, self.recipe, self._vocabulary(), name, self._progress)
        work.save(name, {"ids": found.ids, "real": found.real.astype(np.uint8)})
        return found

    def _losses(self) -> dict[str, float]:
        """How likely each model finds what both write; made once for all adapters."""
        kept = self._pair.load("losses")
        if kept is not None:
            return {name: float(loss) for name, loss in kept.items()}
        source, target = self._speaker("source"), self._speaker("target")
        of_target = self._pool(self._pair, "target", target)
        of_source = self._pool(self._pair, "source", source)
        loss = partial(surprise, at_once=self.recipe.at_once)
        losses = {
            "source_on_target": loss(source, of_target),
            "target_on_source": loss(target, of_source),
            "target_own": loss(target, of_target),
            "source_own": loss(source, of_source),
        }
        self._pair.save("losses", {name: np.array(value) for name, value in losses.items()})
        return losses

    def _refined(self, one: ToRefine) -> RefinedAdapter:
        losses = self._losses()
        r = guard.disagreement(**losses)
        way = guard.way(r, style=True, limit=self.limit)
        record = Refined(
            way=way,
            teacher=None,
            disagreement=r,
            sentence=guard.sentence_of_texts(r, self.limit),
            losses=losses,
            words=(),
            effects={},
            triggers=(),
            is_style=True,
            stamp=self.folder(one).stamp,
        )
        if way == "copy":
            return RefinedAdapter(one.copied, record)
        target, modules = self._speaker("target"), self._spec.modules
        start = start_of(factors_of(one.copied), one.from_zero, modules, self.recipe.seed)
        rows, predict = self._rows(one, target), lm_student(target)
        options = self.recipe.fit_for(
            from_zero=not factors_of(one.copied), devices=devices_of(self._mesh)
        )
        state = self._fitted(one, predict, rows, new_state(start, options), options)
        require_numbers(state.factors, f"{one.given.origin}: what its student has learned")
        nothing = jax.tree.map(jnp.zeros_like, state.factors)
        apart = [
            missed(predict, factors, rows, self.recipe.batch, self._mesh)
            for factors in (nothing, jax.tree.map(jnp.asarray, start), state.factors)
        ]
        adapter = self._written(one, state)
        norms = {m.path: m.norm for m in adapter.modules if m.path in one.from_zero}
        record = replace(
            record,
            teacher=self.recipe.teacher,
            steps=options.steps,
            loss_curve=tuple(float(x) for x in np.asarray(state.losses)),
            missed=(apart[1] / max(apart[0], 1e-12), apart[2] / max(apart[0], 1e-12)),
            from_zero=tuple(FromZero(p, one.from_zero[p], norms[p]) for p in sorted(norms)),
        )
        return RefinedAdapter(adapter, record)

    def _rows(self, one: ToRefine, target: WritingModel) -> Rows:
        """Texts of the target and of the source with the adapter, answered by all three."""
        work, source = self.folder(one), self._speaker("source")
        taught = source.beside(factors_of(one.given))
        texts = self._pool(self._pair, "target", target)
        texts = texts.joined(self._pool(work, "adapter", taught))
        kept = work.load("answers")
        if kept is not None:
            wanted = TopAnswers(*(kept[name] for name in TopAnswers._fields))
        else:
            speakers = Teachers(target, source, taught)
            vocabulary = self._vocabulary()
            wanted = answers(speakers, texts, self.recipe, vocabulary, self._progress)
            work.save("answers", wanted._asdict())
        return lesson(texts, wanted)

    def _written(self, one: ToRefine, state: FitState) -> Adapter:
        shapes = {path: module.shape for path, module in self._spec.modules.items()}
        dtype = (one.copied.modules or one.given.modules)[0].up.dtype
        modules = with_factors(one.copied, state.factors, shapes, dtype)
        return replace(one.copied, modules=modules)

    def _fitted(
        self, one: ToRefine, predict: Any, rows: Rows, state: FitState, options: RefineOptions
    ) -> FitState:
        """The fit, taken up where it was left."""
        work = self.folder(one)

        def after(now: FitState) -> None:
            self._progress("student learns", int(now.step), options.steps)
            keep_state(work, now, options.steps)

        state = kept_state(work, state)
        return fit(predict, rows, state, options, mesh=self._mesh, progress=after, error=divergence)
