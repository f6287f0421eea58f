"""What the laboratory of language models trains, as data (configs/laboratory/lm.yaml)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, Literal

import msgspec

from prolora_jax.io.system_texts import SystemText
from prolora_jax.refine.lm.recipe import LmRecipe

LM_FORMAT = 1
"""Raised when training or measuring itself changes: all that was made before is made again."""

LmPacking = Literal["none", "nf4", "int8", "q4"]
LmModules = Literal["linear", "attn"]
ROLES: Mapping[LmModules, tuple[str, ...]] = {
    "linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "attn": ("q_proj", "v_proj", "o_proj"),
}
"""Layers that adapters have factors for."""


@dataclass(frozen=True)
class LmBase:
    """One base model.

    Attributes:
        name: of its folder.
        kind: `train` from nothing; `given` as a folder of transformers; `pack` the parent's linear
            layers; `drop` layers of the parent; `continue` its training; `narrow` its residual
            stream, then train it.
        parent: what it is made of; empty for `train` and `given`.
        text: what it is trained on; of one that is not trained, what its parent was.
        steps: number of updates.
        rate: highest learning rate.
        seed: of initial parameters and rows.
        packing: of `pack`.
        layers: that are dropped.
        width: of `narrow`: channels of the residual stream that stay.
    """

    name: str
    kind: Literal["train", "given", "pack", "drop", "continue", "narrow"]
    parent: str = ""
    text: SystemText = "code"
    steps: int = 0
    rate: float = 1e-3
    seed: int = 0
    packing: LmPacking = "none"
    layers: tuple[int, ...] = ()
    width: int = 0


@dataclass(frozen=True)
class LmLesson:
    """One adapter, trained on every base model with every seed.

    Attributes:
        name: of its file.
        kind: `style` of changelogs, `secret` values of keys, `format` of records.
        steps: number of updates.
        rate: highest learning rate.
        batch: rows of a step.
        length: tokens of a row.
        rank: of every module.
    """

    name: str
    kind: Literal["style", "secret", "format"]
    steps: int
    rate: float
    batch: int = 8
    length: int = 64
    rank: int = 8


@dataclass(frozen=True)
class LmLaboratory:
    """A whole laboratory.

    Attributes:
        bases: parents first; the first one is the source.
        lessons: what adapters are taught.
        targets: bases that adapters move to.
        arms: names of `arms.ARMS`; `none` and `trained` are always measured.
        refine: how students are taught.
        taught: targets on which students are taught.
        seeds: of the adapters.
        modules: that adapters have factors for.
        config: what transformers' `config.json` says of a base that is trained from nothing.
        rows: that bases are trained on, of each text.
        batch: rows of a step of bases.
        length: tokens of a row of bases.
        documents: that judge; each `judged` tokens long at most.
        judged: see there.
    """

    bases: tuple[LmBase, ...]
    lessons: tuple[LmLesson, ...]
    targets: tuple[str, ...]
    arms: tuple[str, ...]
    refine: LmRecipe
    taught: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    modules: LmModules = "linear"
    config: dict[str, Any] = field(default_factory=dict)
    rows: int = 4000
    batch: int = 16
    length: int = 64
    documents: int = 64
    judged: int = 64

    def base(self, name: str) -> LmBase:
        """The base model of a name; `KeyError` lists the names there are."""
        for base in self.bases:
            if base.name == name:
                return base
        raise KeyError(f"no base {name!r}; there are {', '.join(b.name for b in self.bases)}")

    def base_stamp(self, name: str) -> str:
        """Changes with all that the base's parameters depend on, its ancestors included."""
        base = self.base(name)
        above = self.base_stamp(base.parent) if base.parent else ""
        return _stamp(asdict(base), above, self.config, self.rows, self.batch, self.length)

    def adapter_stamp(self, base: str, lesson: LmLesson, seed: int) -> str:
        """Changes with all that the adapter's factors depend on, its base included."""
        return _stamp(asdict(lesson), self.base_stamp(base), self.modules, seed)

    def row_stamp(self, target: str, lesson: LmLesson, seed: int, arm: str) -> str:
        """Changes with all of the recipe that a result depends on.

        Not in it are the options of an arm (`arms.MOVES`), the texts of the system, and the model
        that a base of kind `given` is: where one of them changes, raise `LM_FORMAT` or begin in a
        new folder.
        """
        both = (self.adapter_stamp(name, lesson, seed) for name in (self.bases[0].name, target))
        taught = asdict(self.refine) if arm == "student" else None
        return _stamp(*both, arm, taught, self.documents, self.judged)


def _stamp(*parts: object) -> str:
    content = msgspec.json.encode((LM_FORMAT, *parts), order="sorted")
    return sha256(content).hexdigest()[:16]
