"""What becomes of biases, norms, whole layers and rows beside an adapter's pairs.

No projection moves them. A vector is carried over as it is where the target has the same layer in
the same width; rows of an embedding where it has the same tokens, and a layer of peft's
`modules_to_save` where it has the same layer in the same shape; what is left behind is listed, with
its share of the update, and makes the file `partial`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

import numpy as np

from prolora_jax.adapters.adapter import Adapter, Companion, Part
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.llm.layouts import is_classifier, stored_in_out, stream_width
from prolora_jax.architectures.norms import norms
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.matching.tokens import TokenMap
from prolora_jax.plans.options import MigrationOptions

PARTIAL = "partial: "
"""Start of the flag of a file that leaves something beside its pairs behind."""

_NOWHERE = (None, 0)


class Fate(StrEnum):
    """What becomes of a companion. Values are stable."""

    CARRIED = "carried"
    NO_EFFECT = "no-effect"
    WHOLE_LAYER = "whole-layer"
    NO_LAYER = "no-layer"
    OTHER_WIDTH = "other-width"
    SOME_ROWS = "some-rows"
    OTHER_TOKENS = "other-tokens"
    MODULE_SKIPPED = "module-skipped"
    EXCLUDED = "excluded"


_WITH_ROWS = frozenset({Fate.CARRIED, Fate.EXCLUDED})
"""Fates of rows that need nobody's leave."""


_WHY = {
    Fate.NO_LAYER: "no layer stands for it there",
    Fate.OTHER_WIDTH: "the layer has another shape there",
    Fate.OTHER_TOKENS: "its rows are of other tokens there",
    Fate.WHOLE_LAYER: "what it differs by from the base model's is not known",
}
"""Why a saved layer stays behind."""

OF_TOKENS = frozenset({"rows", "bias", "saved"})
"""Parts that may have a row, or a number, for each token."""


@dataclass(frozen=True)
class PlannedCompanion:
    """A tensor beside the pairs, and what becomes of it.

    Attributes:
        key: in the input.
        part: `bias`, `weight`, `layer`, `saved`, `rows` or `none`.
        source_path: its layer.
        path: the target's layer that gets it; None where none does.
        fate: what becomes of it.
        share: of the squared norm of all that the input adds; 0 of a whole layer and of whole
            rows, which are no differences from a base model.
    """

    key: str
    part: Part
    source_path: str
    path: str | None
    fate: Fate
    share: float


def plan_companions(
    adapter: Adapter,
    source: BaseModelSpec,
    target: BaseModelSpec,
    pairs: Mapping[str, str],
    moved: Collection[tuple[str, str]],
    options: MigrationOptions,
    tokens: TokenMap | None = None,
) -> tuple[PlannedCompanion, ...]:
    """Decide about every tensor beside the pairs.

    Args:
        adapter: resolved against `source`.
        source: the base it was trained on.
        target: the base it moves to.
        pairs: source path by target path of the matching.
        moved: (target path, source path) of the pairs that move.
        options: patterns of what moves, and whether whole layers may stay behind.
        tokens: of both base models; where they are not known, a number is one token in both.

    Returns:
        A record for each companion and each layer of the target that gets it.

    Raises:
        WholeLayers: there are some, and nobody has said that they may stay behind, or excluded
            them.
        NoRows: so of rows that the target has no place for.
        NoSavedLayer: so of layers of `modules_to_save`.
    """
    if not adapter.companions:
        return ()
    asked = tuple(c for c in adapter.companions if not _excluded(c.path, options))
    wanted = replace(adapter, companions=asked)
    require_no_whole_layers(wanted, allow_partial=options.allow_partial)
    fed_by = {norm.feeds: (path, norm.width) for path, norm in norms(target).items()}
    feeds = {path: norm.feeds for path, norm in norms(source).items()}
    trained = {module.path for module in adapter.modules}
    total = sum(m.norm**2 for m in adapter.modules) + sum(c.norm**2 for c in adapter.companions)
    found = []
    for c in adapter.companions:
        share = c.norm**2 / total if total > 0 else 0.0
        if c.part == "rows":
            found.append(_planned_rows(c, target, options, tokens))
            continue
        if c.part == "saved":
            found += _planned_saved(c, adapter, (source, target), pairs, options, tokens)
            continue
        anchor = feeds.get(c.path, c.path)
        targets = [path for path, own in pairs.items() if own == anchor]
        if not targets and is_text_encoder(anchor):
            targets = [path for path, own in moved if own == anchor]
        places = [] if c.part in {"layer", "none"} else targets
        for place in places:
            of_norm = c.path in feeds
            layer, width = fed_by.get(place, _NOWHERE) if of_norm else _layer(place, target)
            fate = Fate.CARRIED
            if _excluded(place, options):
                fate = Fate.EXCLUDED
            elif layer is None or (c.part == "weight" and not of_norm):
                fate = Fate.NO_LAYER
            elif tokens is not None and tokens.moves(source, target, place):
                fate = Fate.OTHER_TOKENS  # a head's bias
            elif width != c.array.size:
                fate = Fate.OTHER_WIDTH
            elif anchor == c.path and anchor in trained and (place, anchor) not in moved:
                fate = Fate.MODULE_SKIPPED
            path = layer if fate is Fate.CARRIED else None
            found.append(PlannedCompanion(c.key, c.part, c.path, path, fate, share))
        if not places:
            none = {"layer": Fate.WHOLE_LAYER, "none": Fate.NO_EFFECT}
            fate = none.get(c.part, Fate.NO_LAYER)
            if c.part == "layer" and _excluded(c.path, options):
                fate = Fate.EXCLUDED
            found.append(PlannedCompanion(c.key, c.part, c.path, None, fate, share))
    lacking = [c.key for c in found if c.part == "rows" and c.fate not in _WITH_ROWS]
    if lacking and not options.allow_partial:
        raise NoRows(adapter.origin, lacking, target.name)
    unplaced = [c for c in found if c.part == "saved" and c.fate not in _WITH_ROWS]
    if unplaced and not options.allow_partial:
        raise NoSavedLayer(adapter.origin, unplaced, target.name)
    return tuple(found)


def _planned_rows(
    c: Companion, target: BaseModelSpec, options: MigrationOptions, tokens: TokenMap | None
) -> PlannedCompanion:
    """Rows go where the target has the same embedding in the same width, and their tokens."""
    layer = target.modules.get(c.path)
    there = 0 if layer is None else len(rows_in(c, layer.shape[0], tokens).rows)
    fate, path = Fate.CARRIED, c.path
    if _excluded(c.path, options):
        fate = Fate.EXCLUDED
    elif layer is None:
        fate = Fate.NO_LAYER
    elif layer.shape[1:] != c.array.shape[1:]:
        fate = Fate.OTHER_WIDTH
    elif not there:
        fate = Fate.OTHER_TOKENS
    elif there < len(c.rows):
        fate = Fate.SOME_ROWS
    moves = fate in {Fate.CARRIED, Fate.SOME_ROWS}
    return PlannedCompanion(c.key, c.part, c.path, path if moves else None, fate, 0.0)


def _planned_saved(
    c: Companion,
    adapter: Adapter,
    models: tuple[BaseModelSpec, BaseModelSpec],
    pairs: Mapping[str, str],
    options: MigrationOptions,
    tokens: TokenMap | None,
) -> list[PlannedCompanion]:
    """A saved layer goes where the target has its layer in the same shape, and its tokens.

    A head that the source does not have is new in the adapter, and goes as it is.
    """
    source, target = models
    places = [path for path, own in pairs.items() if own == c.path]
    if c.path not in source.modules and is_classifier(c.path):
        places = [c.path]
    if not places or _excluded(c.path, options):
        there = Fate.OTHER_WIDTH if c.path in target.modules else Fate.NO_LAYER
        fate = Fate.EXCLUDED if _excluded(c.path, options) else there
        return [PlannedCompanion(c.key, c.part, c.path, None, fate, 0.0)]
    found = []
    for place in places:
        fate = Fate.CARRIED
        if _excluded(place, options):
            fate = Fate.EXCLUDED
        elif not _saved_alone(c, adapter, source):
            fate = Fate.WHOLE_LAYER
        elif tokens is not None and tokens.moves(source, target, place):
            fate = Fate.OTHER_TOKENS
        elif not _saved_fits(c, place, source, target):
            fate = Fate.OTHER_WIDTH
        path = place if fate is Fate.CARRIED else None
        found.append(PlannedCompanion(c.key, c.part, c.path, path, fate, 0.0))
    return found


def _saved_alone(c: Companion, adapter: Adapter, source: BaseModelSpec) -> bool:
    """Whether all that a saved layer has is known here, and nothing else changes it.

    Of the base models' layers the weights are known as matrices, and not whether there are biases;
    experts are one tensor in memory, and GPT-2's layers are stored the other way round.
    """
    tensors = {o.key.rpartition(".")[2] for o in adapter.companions if (o.part, o.path) == _of(c)}
    if c.path not in source.modules:
        return "weight" in tensors
    trained = any(module.path == c.path for module in (*adapter.modules, *adapter.structured))
    odd = stored_in_out(c.path) or ".experts." in c.path
    return tensors == {"weight"} and not trained and not odd


def _of(c: Companion) -> tuple[Part, str]:
    return c.part, c.path


def _saved_fits(c: Companion, place: str, source: BaseModelSpec, target: BaseModelSpec) -> bool:
    """Whether a saved tensor has its layer's shape in both; of a new head, their width."""
    shapes = [{path: one.shape for path, one in spec.modules.items()} for spec in (source, target)]
    theirs, ours = shapes[0].get(c.path), shapes[1].get(place)
    if theirs is not None:
        return c.array.shape == theirs == ours
    wide = {*map(stream_width, shapes)}
    if len(wide) != 1 or None in wide or c.array.shape[1:] not in {(), (*wide,)}:
        return False
    return ours is None or c.array.shape in {ours, ours[:1]}


def require_no_whole_layers(adapter: Adapter, *, allow_partial: bool) -> None:
    """Refuse an adapter with whole layers, unless they may stay behind.

    Raises:
        WholeLayers: there are some.
        OtherNetworks: there are pairs of other networks' layers.
    """
    whole = [c for c in adapter.companions if c.part == "layer"]
    if whole and not allow_partial:
        pairs = [c.key for c in whole if c.key.endswith((".lora_A", ".lora_B"))]
        if pairs:
            raise OtherNetworks(adapter.origin, pairs)
        over_time = all(c.array.ndim == 5 or c.array.size == 1 for c in whole)  # or an alpha
        raise WholeLayers(adapter.origin, [c.key for c in whole], over_time=over_time)


class WholeLayers(AdapterRefused):
    """Raised for a file with whole layers, where nobody has said that they may stay behind."""

    def __init__(self, origin: str, keys: list[str], *, over_time: bool = False):
        name, what, expected = "modules_to_save", "whole layers", "plain LoRA"
        if over_time:
            name, what = "conv3d", "convolutions over time"
            expected = "pairs of linear layers and of convolutions over pixels"
        super().__init__(
            f"{origin}: unsupported-algorithm:{name}: found {len(keys)} tensors of {what}, "
            f"{', '.join(keys[:3])}; expected {expected}; move the LoRA part alone with "
            f"--allow-partial",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )


class OtherNetworks(AdapterRefused):
    """Raised for pairs of layers of pictures or sound, unless they may stay behind."""

    def __init__(self, origin: str, keys: list[str]):
        super().__init__(
            f"{origin}: found {len(keys)} tensors of layers beside the language model's, "
            f"{', '.join(keys[:3])}; expected the language model's alone, which are what is moved; "
            f"leave the others behind with --allow-partial",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )


class NoRows(AdapterRefused):
    """Raised for rows of tokens without a place in the target, unless they may stay behind."""

    def __init__(self, origin: str, keys: list[str], target: str):
        super().__init__(
            f"{origin}: unsupported-algorithm:trainable_token_indices: found whole rows of an "
            f"embedding, {', '.join(keys[:3])}, not all of which base model {target} has a place "
            f"for; expected the same vocabulary and width; move the rest with --allow-partial",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )


class NoSavedLayer(AdapterRefused):
    """Raised for whole layers without a place in the target, unless they may stay behind."""

    def __init__(self, origin: str, layers: list[PlannedCompanion], target: str):
        found = "; ".join(f"{c.key}: {_why(c)}" for c in layers[:3])
        more = f"; and {len(layers) - 3} more" if len(layers) > 3 else ""
        super().__init__(
            f"{origin}: unsupported-algorithm:modules_to_save: found whole layers that base model "
            f"{target} cannot get ({found}{more}); expected layers that it has in the same shape "
            f"and for the same tokens; move the rest with --allow-partial",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )


def _why(companion: PlannedCompanion) -> str:
    """Why a saved layer stays behind, in words."""
    if companion.fate is Fate.OTHER_WIDTH and is_classifier(companion.source_path):
        return "it has another shape there, or no layer tells how wide both base models are"
    return _WHY[companion.fate]


def left_behind(companions: tuple[PlannedCompanion, ...]) -> tuple[str, ...]:
    """The flag of a file that leaves companions behind; none where all that counts comes along."""
    kept = {c.key for c in companions if c.fate in {Fate.CARRIED, Fate.NO_EFFECT}}
    left = {c.key: c for c in companions if c.key not in kept}
    if not left:
        return ()
    return (f"{PARTIAL}{len(left)} tensors left behind, first {next(iter(left))}",)


def carried(
    companions: tuple[PlannedCompanion, ...], adapter: Adapter, options: MigrationOptions
) -> tuple[Companion, ...]:
    """The companions of the output; rows and saved layers are those of the input.

    Args:
        companions: of the plan.
        adapter: the input.
        options: the scale that multiplies every update.
    """
    given = {c.key: c for c in adapter.companions}
    moved = []
    for c in companions:
        if c.path is not None and c.key in given:
            array, scale = given[c.key].array, options.options_for(c.path).scale
            if scale != 1.0 and c.part not in {"rows", "saved"}:
                array = (array.astype(np.float64) * scale).astype(np.float32)
            moved.append(Companion(c.key, c.path, c.part, array, given[c.key].rows))
    return tuple(moved)


def rows_in(companion: Companion, count: int, tokens: TokenMap | None) -> Companion:
    """Rows of an embedding as a target numbers them, without those that it has not.

    Args:
        companion: with the source's numbers.
        count: rows of the target's embedding.
        tokens: of both; where they are not known, a number is one token in both.
    """
    numbers = [row if tokens is None else tokens.number(row) for row in companion.rows]
    kept = [(n, place) for place, n in enumerate(numbers) if n is not None and n < count]
    rows, places = tuple(n for n, _ in kept), [place for _, place in kept]
    if rows == companion.rows:
        return companion
    return replace(companion, array=companion.array[places], rows=rows)


def _layer(path: str, target: BaseModelSpec) -> tuple[str | None, int]:
    module = target.modules.get(path)
    return _NOWHERE if module is None else (path, module.shape[0])


def _excluded(path: str, options: MigrationOptions) -> bool:
    if options.include and not any(fnmatchcase(path, p) for p in options.include):
        return True
    return any(fnmatchcase(path, p) for p in options.exclude)
