"""What the laboratory trains, as data: base models, adapters, budgets (configs/laboratory)."""

from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Literal

import msgspec

FORMAT = 1
"""Raised when training itself changes: what was trained before is then trained again."""


@dataclass(frozen=True)
class BaseRecipe:
    """One base model.

    Attributes:
        name: of its folder.
        kind: `train` from nothing, `tune` the parent on other data, `prune` and distil it, `hasten`
            it: distil several of its steps into one; `shift`: keep some blocks of each stack under
            new numbers, and distil; `narrow`: distil it into a net of half the width.
        parent: base model it starts from; empty for `train`.
        data: transform of the digits that it is trained on (`data.TRANSFORMS`).
        steps: number of updates.
        rate: highest learning rate.
        seed: of initial parameters and batches.
        depth: transformer blocks of each attention of a base without parent; 0 for the recipe's.
    """

    name: str
    kind: Literal["train", "tune", "prune", "hasten", "shift", "narrow"]
    steps: int
    rate: float
    parent: str = ""
    data: str = "none"
    seed: int = 0
    depth: int = 0

    @property
    def facts(self) -> dict[str, object]:
        """All that its parameters depend on.

        The depth came later: a base without one is what it was, and stays trained.
        """
        found = asdict(self)
        if not self.depth:
            del found["depth"]
        return found


@dataclass(frozen=True)
class AdapterRecipe:
    """One adapter, trained on every base model.

    Attributes:
        name: of its file, and of what it teaches: a transform, a concept, or anything for `speed`.
        kind: `style`, `concept`, or `speed` (pictures in few steps).
        rank: of every module.
        steps: number of updates.
        rate: highest learning rate.
        modules: `attn`, or `linear` for all linear layers of the net.
    """

    name: str
    kind: Literal["style", "concept", "speed"]
    rank: int
    steps: int
    rate: float
    modules: Literal["attn", "linear"] = "attn"


@dataclass(frozen=True)
class Recipe:
    """A whole laboratory.

    Attributes:
        bases: in an order in which parents come first; the first one is the source.
        adapters: each trained on every base with every seed.
        seeds: of the adapters.
        batch: pictures of a training step.
        width: channels of the nets.
        depth: transformer blocks of each of the source's attentions.
    """

    bases: tuple[BaseRecipe, ...]
    adapters: tuple[AdapterRecipe, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    batch: int = 64
    width: int = 64
    depth: int = 2

    def base(self, name: str) -> BaseRecipe:
        """The base model of a name; `KeyError` lists the names there are."""
        for base in self.bases:
            if base.name == name:
                return base
        raise KeyError(f"no base {name!r}; there are {', '.join(b.name for b in self.bases)}")

    def adapter(self, name: str) -> AdapterRecipe:
        """The adapter of a name; `KeyError` lists the names there are."""
        for adapter in self.adapters:
            if adapter.name == name:
                return adapter
        names = ", ".join(a.name for a in self.adapters)
        raise KeyError(f"no adapter {name!r}; there are {names}")

    def source_of(self, target: str) -> str:
        """Whose adapters are moved to a base: its oldest ancestor's.

        A base without parent is compared with the first one.
        """
        root = self.root_of(target)
        return self.bases[0].name if root.name == target else root.name

    def root_of(self, name: str) -> BaseRecipe:
        """The oldest ancestor of a base: itself if it has no parent."""
        base = self.base(name)
        while base.parent:
            base = self.base(base.parent)
        return base

    def teaches(self, base: str, name: str) -> bool:
        """Whether an adapter makes sense on a base: what is fast already is not hastened again."""
        return self.adapter(name).kind != "speed" or self.base(base).kind != "hasten"

    def base_hash(self, name: str) -> str:
        """Changes with all that the base's parameters depend on, its ancestors included."""
        base = self.base(name)
        above = self.base_hash(base.parent) if base.parent else ""
        return _hash(base.facts, above, self.batch, self.width, self.depth, FORMAT)

    def adapter_hash(self, base: str, name: str, seed: int) -> str:
        """Changes with all that the adapter's factors depend on, its base included."""
        parts: list[object] = [asdict(self.adapter(name)), self.base_hash(base), seed]
        if self.base(base).kind == "hasten":
            parts.append(self.adapter_hash(self.base(base).parent, name, seed))
        return _hash(*parts)


def _hash(*parts: object) -> str:
    return sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:16]
