"""Rows of embeddings and heads in their migration, found by their tokens."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.algorithms.table import ALGORITHMS
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.matching.matching import Matching
from prolora_jax.matching.slices import Slice
from prolora_jax.matching.tokens import (
    TokenMap,
    token_map,
    unlike_vocabularies,
    with_token_layers,
)
from prolora_jax.matching.vocabularies import (
    Vocabulary,
    vocabulary_of_gguf,
    vocabulary_of_json,
)
from prolora_jax.plans.companions import OF_TOKENS, PlannedCompanion
from prolora_jax.plans.plan import BY_TOKEN, SLICED, PlanStep
from prolora_jax.plans.token_flags import added_by_number, layers_of_tokens, token_flags


class PairTokens:
    """The tokens of two base models; tokenizers are read when somebody asks for them.

    Args:
        source: base model that adapters were trained on.
        target: base model that they move to.
    """

    def __init__(self, source: BaseModel, target: BaseModel):
        self._models = source, target

    @cached_property
    def map(self) -> TokenMap | None:
        """What both have; None where a tokenizer of either is not at hand.

        Raises:
            BaseModelError: a tokenizer is damaged.
        """
        source, target = map(vocabulary_of, self._models)
        return None if source is None or target is None else token_map(source, target)

    def matched(self, matching: Matching) -> Matching:
        """A matching with layers that have a row for each of another number of tokens."""
        specs = self._models[0].spec, self._models[1].spec
        if next(iter(unlike_vocabularies(*specs)), None) is None or self.map is None:
            return matching
        return with_token_layers(matching, *specs)

    def moving(self, paths: Iterable[str]) -> set[str]:
        """Layers of the target whose rows have to be found by their tokens."""
        source, target = self._models[0].spec, self._models[1].spec
        asked = layers_of_tokens(paths)
        if not asked or self.map is None:
            return set()
        return {path for path in asked if self.map.moves(source, target, path)}

    def rows(self, step: PlanStep) -> Slice | None:
        """The source's row for each row of a step's layer; None where rows keep their places."""
        if BY_TOKEN not in step.flags or self.map is None:
            return None
        source, target = (model.spec.modules[step.path].shape[0] for model in self._models)
        return Slice(self.map.rows(source, target))

    def flags(
        self, steps: Iterable[PlanStep], companions: Iterable[PlannedCompanion]
    ) -> tuple[str, ...]:
        """Flags of a file: tokens that stay behind, or that nothing is known of tokens."""
        moved = added_by_number(steps, companions)
        if not moved:
            return ()
        known = self.map  # before weights are looked at, which takes longer
        source, target = self._models
        unlike = known is None and any(
            source.fingerprint(p) != target.fingerprint(p) for p in moved
        )
        return token_flags(steps, known, unlike=unlike)


def vocabulary_of(model: BaseModel) -> Vocabulary | None:
    """The tokens of a base model; None where nothing says them.

    Args:
        model: a language model.

    Raises:
        BaseModelError: a tokenizer is damaged.
    """
    content = model.tokenizer()
    if content is None or isinstance(content, bytes):
        return None if content is None else vocabulary_of_json(content, model.location)
    return vocabulary_of_gguf(*content)


def uses_tokens(adapter: Adapter) -> bool:
    """Whether an adapter changes anything that there is for each token."""
    beside = any(companion.part in OF_TOKENS for companion in adapter.companions)
    return beside or bool(layers_of_tokens(module.path for module in adapter.modules))


def in_places(module: LoraModule, places: Slice) -> LoraModule:
    """An update with some of its rows and columns, in another order.

    Args:
        module: a linear layer's.
        places: which row and column each of the new ones is.
    """
    up, down = module.up[places.rows], module.down
    up[places.rows < 0] = 0
    if places.columns is not None:
        down = down[:, places.columns]
    return replace(module, up=up, down=down)


def require_movable(adapter: Adapter, steps: Iterable[PlanStep]) -> None:
    """Refuse algorithms that are kept on layers whose rows or columns go to other places.

    DoRA's magnitudes would have to go with them. LoHa and LoKr become plain LoRA there, which a
    folder of peft's cannot hold beside modules of its own kind.

    Args:
        adapter: with LoRA factors.
        steps: what is to be done.

    Raises:
        AdapterRefused: there is one.
    """
    moved = {step.source_path for step in steps if {BY_TOKEN, SLICED} & {*step.flags}}
    for module in adapter.modules:
        made = module.made_from if module.path in moved else None
        if made is None:
            continue
        if made.gains is not None:
            instead = "--dora fold"
        elif made.own is not None and adapter.format == "peft":
            instead = "--format lora"
        else:
            continue
        found = ALGORITHMS[made.algorithm].title
        raise AdapterRefused(
            f"{adapter.origin}: {module.path}: found {found} on a layer whose rows or columns go "
            f"to other places; expected plain LoRA; move it with {instead}",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )
