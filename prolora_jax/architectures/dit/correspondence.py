"""Which block of one published transformer each block of another comes from.

Data, by ids of source and target. Ids come from shapes, which other models have, too: whoever asks
has to look at the weights as well (`matching.known_sources`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import place_of


@dataclass(frozen=True)
class BlockMap:
    """Where the blocks of one stack come from; all other modules keep their names.

    Attributes:
        stack: of both models.
        sources: source block of each target block, in order; None of one that was put in.
    """

    stack: str
    sources: tuple[int | None, ...]

    def reversed(self) -> "BlockMap":
        """The way back; a source block that no target block comes from has none."""
        targets = {source: i for i, source in enumerate(self.sources) if source is not None}
        return BlockMap(self.stack, tuple(map(targets.get, range(1 + max(targets)))))


def _grown(blocks: int, put_in: tuple[int, ...]) -> BlockMap:
    """A stack into which blocks were put.

    Args:
        blocks: that it has now.
        put_in: numbers of those that were not there.
    """
    old = iter(range(blocks - len(put_in)))
    return BlockMap(
        "transformer_blocks", tuple(None if i in put_in else next(old) for i in range(blocks))
    )


# Double blocks 5 to 15 are gone; 4 stands for them and was trained anew. No single block is gone.
_FLEX = BlockMap("transformer_blocks", (0, 1, 2, 3, 4, 16, 17, 18))
# What was put in began as a copy of the block before it, with outputs of zero.
_TO_40 = _grown(40, (2, 5, 8, 11, 14, 17, 21, 24, 27, 30, 33, 36))
_TO_52 = _grown(52, tuple(range(3, 48, 4)))
_FROM_28_TO_52 = BlockMap(
    "transformer_blocks",
    tuple(None if i is None else _TO_40.sources[i] for i in _TO_52.sources),
)

BLOCK_MAPS: Mapping[tuple[str, str], BlockMap] = {
    **{
        (flux, flex): _FLEX
        for flux in ("flux1-dev", "flux1-schnell")
        for flex in ("flex1-alpha", "flex2-preview")
    },
    ("cosmos-predict2-2b", "anima-2-9b"): _TO_40,
    ("anima-2-9b", "anima-3-8b"): _TO_52,
    ("cosmos-predict2-2b", "anima-3-8b"): _FROM_28_TO_52,
}
"""By ids of source and target (`BaseModelSpec.architecture`)."""


def dit_source_paths(source: BaseModelSpec, target: BaseModelSpec) -> dict[str, str] | None:
    """Source path by target path, where it is known which block comes from which.

    Args:
        source: modules of the source base.
        target: modules of the target base.

    Returns:
        Every module of the target's transformer that has a source module of its shape; None when
        nothing is known of these two architectures, in either direction.
    """
    ids = source.architecture or "", target.architecture or ""
    back = BLOCK_MAPS.get((ids[1], ids[0]))
    known = BLOCK_MAPS.get(ids) or (None if back is None else back.reversed())
    if known is None:
        return None
    found = {}
    for path in target.component(DIT_COMPONENTS[0]):
        origin = _source_path(known, path)
        module = source.modules.get(origin or "")
        if module is not None and module.shape == target.modules[path].shape:
            found[path] = module.path
    return found


def _source_path(known: BlockMap, path: str) -> str | None:
    place = place_of(path)
    if place is None or place.steps[0].stack.name != known.stack:
        return path
    number = place.steps[0].number
    source = known.sources[number] if number < len(known.sources) else None
    return None if source is None else f"{place.component}.{known.stack}.{source}.{place.role}"
