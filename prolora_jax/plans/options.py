"""What the user asked for: every option of a migration, checked when it is made."""

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from prolora_jax.adapters.adapter import AlphaZero
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.architectures.identify import ARCHITECTURES
from prolora_jax.architectures.llm.layouts import is_embedding
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.method.basis import BasisRule
from prolora_jax.method.encoding import OutputRank
from prolora_jax.plans.rules import BadRule, ModuleRule, followed

Match = Literal["auto", "name", "block", "module"]


class BadOption(UsageError):
    """Raised when an option has a value it cannot have."""

    def __init__(self, name: str, value: object, expected: str, hint: str = ""):
        flag = "--" + name.replace("_", "-")
        super().__init__(f"{flag} {value}: expected {expected}.{hint}", code=Refusal.BAD_OPTION)


@dataclass(frozen=True)
class MigrationOptions:
    """Options of a migration; the command line has the same names with dashes.

    Attributes:
        method: of docs/method.md 5; `copy` is the ungated baseline.
        basis_rank: `energy=0.9`, `rank=320`, `fraction=0.5`, `numerical`, `gap` (where the
            singular values have their largest relative gap) or `optimal` (Gavish and Donoho's
            hard threshold).
        pair_rank: one common k per pair (`max`), or each base model its `own`.
        min_similarity: a module moves when the gate's similarity reaches this on the gate's sides.
        gate: what is compared with `min_similarity`: `phi`, or `corrected` for chance; `auto`: phi,
            but modules whose weights are close are copied without computing subspaces.
        gate_sides: `both`, or `left` only as the paper writes it.
        below: modules below the gate get no adapter (`skip`), or the source's update (`copy`).
        identical: modules whose weights are equal are copied, or projected all the same.
        match: `name`; `block` (alignment of stages, slots and transformer blocks); `module` (the
            best-scored module of the same role and shape, not one-to-one); or `auto`: names when
            both base models have the same modules, else what is published, else blocks.
        match_score: what alignments are decided on: `cosine` of the weights, or `similarity`
            of their subspaces, corrected for chance.
        assume_base: id of the base model that the adapter was trained on (sdxl, ssd-1b, ...),
            whatever the file itself says.
        rotation_min_cos: principal pairs below this cosine are left still by `rotation`.
        include: path patterns (`*attn2*`); when given, only matching target modules move.
        exclude: path patterns of target modules that do not move.
        rank: `exact`, `source`, a number, or `energy=e`; or, spread over the modules of each file
            by energy, `budget=BYTES` of its factors or `mean=R` columns on average.
        uniform_rank: zero-pad every module to the largest rank.
        rescale: `norm` restores each module's Frobenius norm.
        scale: multiplies every update.
        dtype: of the output; `same` is the input's.
        allow_partial: move the pairs of a file that also holds whole layers or rows which the
            target has no place for (of peft's `modules_to_save`, say), and leave those behind.
        alpha_zero: an alpha of 0 in the input means that the file is refused, alpha = `rank`, or
            no effect (`zero`); programs disagree.
        factor_rank: of the LoRA factors that are made of other algorithms' updates (LoHa, DoRA,
            ...): `energy=e`, `max=k`, or both; `exact`. Those of rank `max` and less stay exact.
        dora: `fold` makes plain LoRA factors of a DoRA's whole update; `keep` moves its BA alone
            and recomputes its magnitude on the target. What is written is DoRA then.
        fused: a layer of a diffusion transformer's authors that diffusers has in `parts`, where the
            adapter has it whole: each part moves for itself, or all rows together (`keep`).
        rules: other options for some target modules; the first rule that matches is followed.
            In --config a list, each with `path:` (one pattern or several) and any of `method`,
            `basis_rank`, `min_similarity`, `rank`, `scale`.

    Raises:
        BadOption: from the constructor, when a value is not one of those above.
        BadRule: when a rule's is not.
    """

    method: Literal["copy", "subspace", "null-space", "prolora", "prolora-full", "rotation"] = (
        "prolora-full"
    )
    basis_rank: str = "energy=0.9"
    pair_rank: Literal["max", "own"] = "max"
    min_similarity: float = 0.8
    gate: Literal["phi", "corrected", "auto"] = "phi"
    gate_sides: Literal["both", "left"] = "both"
    below: Literal["skip", "copy"] = "skip"
    identical: Literal["copy", "project"] = "copy"
    match: Match = "auto"
    match_score: Literal["cosine", "similarity"] = "cosine"
    assume_base: str | None = None
    rotation_min_cos: float = 0.1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rank: str = "exact"
    uniform_rank: bool = False
    rescale: Literal["none", "norm"] = "none"
    scale: float = 1.0
    dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    allow_partial: bool = False
    alpha_zero: AlphaZero = "refuse"
    factor_rank: str = "energy=0.999,max=64"
    dora: Literal["fold", "keep"] = "fold"
    fused: Literal["parts", "keep"] = "parts"
    rules: tuple[ModuleRule, ...] = ()

    def __post_init__(self):
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if get_origin(hint) is Literal and value not in choices:
                near = get_close_matches(str(value), choices, n=1)
                meant = f" Did you mean {near[0]!r}?" if near else ""
                raise BadOption(name, value, " | ".join(choices), meant)
        # Texts that say nothing are refused here.
        _ = self.basis_rule, self.output_rank, self.factors
        if self.assume_base is not None and self.assume_base not in ARCHITECTURES:
            raise BadOption("assume_base", self.assume_base, " | ".join(ARCHITECTURES))
        if not 0.0 < self.rotation_min_cos <= 1.0:
            raise BadOption("rotation_min_cos", self.rotation_min_cos, "a number in (0, 1]")
        if not -1.0 <= self.min_similarity <= 1.0:
            raise BadOption("min_similarity", self.min_similarity, "a number from -1 to 1")
        if not isfinite(self.scale):
            raise BadOption("scale", self.scale, "a finite number")
        if self.dora == "keep" and self.scale != 1.0:
            meant = " A magnitude has no scale; use --dora fold."
            raise BadOption("scale", self.scale, "1 with --dora keep", meant)
        if self.fused == "keep" and self.match == "module":
            meant = " Parts of one layer may come from several there."
            raise BadOption("fused", self.fused, "parts with --match module", meant)
        if self.output_rank.spreads and (self.uniform_rank or self.rescale == "norm"):
            name = "uniform_rank" if self.uniform_rank else "rescale"
            raise BadOption(name, getattr(self, name), f"none with --rank {self.rank}")
        for number, rule in enumerate(self.rules, start=1):
            if not rule.patterns:
                raise BadRule(number, "found no pattern; expected a path")
            try:
                if rule.rank is not None and output_rank(rule.rank).spreads:
                    raise BadOption("rank", rule.rank, "a rank of single modules in a rule")
                self._under(rule)
            except BadOption as error:
                raise BadRule(number, f"found {str(error).rstrip('.')}") from None

    def options_for(self, path: str) -> "MigrationOptions":
        """The options of one module: those of the rule that it follows, and none but these.

        Args:
            path: of the target module.

        Returns:
            Options without rules: one object for each rule, and one for what follows none. An
            embedding's rows stand for tokens, not for directions: what is added is copied.
        """
        if not self.rules and not is_embedding(path):
            return self
        if path not in self._followed:
            self._followed[path] = followed(self.rules, path)
        place = self._followed[path]
        return self._copying[place] if is_embedding(path) else self._resolved[place]

    @property
    def variants(self) -> tuple["MigrationOptions", ...]:
        """All that `options_for` may return."""
        return tuple(self._resolved.values())

    @cached_property
    def _followed(self) -> dict[str, int | None]:
        return {}

    @cached_property
    def _resolved(self) -> dict[int | None, "MigrationOptions"]:
        own = replace(self, rules=()) if self.rules else self
        return {None: own} | {n: self._under(rule) for n, rule in enumerate(self.rules)}

    @cached_property
    def _copying(self) -> dict[int | None, "MigrationOptions"]:
        return {place: replace(own, method="copy") for place, own in self._resolved.items()}

    def _under(self, rule: ModuleRule) -> "MigrationOptions":
        changed: dict[str, Any] = {"rules": (), **rule.overrides}
        return replace(self, **changed)

    @cached_property
    def basis_rule(self) -> BasisRule:
        """What `basis_rank` says."""
        return basis_rule(self.basis_rank)

    @cached_property
    def output_rank(self) -> OutputRank:
        """What `rank` says."""
        return output_rank(self.rank)

    @property
    def keeps_numbers(self) -> bool:
        """Whether what is copied keeps its numbers."""
        return self.rank == "exact" and self.scale == 1.0 and self.dtype == "same"

    @property
    def copies_as_is(self) -> bool:
        """Whether all that moves keeps its numbers."""
        return self.method == "copy" and not self.rules and self.keeps_numbers

    @cached_property
    def factors(self) -> FactorRank:
        """What `factor_rank` says."""
        return factor_rank(self.factor_rank)

    def changed(self) -> dict[str, object]:
        """The options that differ from their defaults."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }


def basis_rule(text: str) -> BasisRule:
    """Parse a rank rule of a basis; a migration's own is `MigrationOptions.basis_rule`.

    Args:
        text: `energy=e` (0 < e <= 1), `rank=k` (k >= 1), `fraction=f` (0 < f <= 1), `numerical`,
            `gap`, `optimal`.

    Returns:
        The rule.

    Raises:
        BadOption: when the text is none of these.
    """
    kind, _, number = text.partition("=")
    if text in ("numerical", "gap", "optimal"):
        return BasisRule(text)
    value = _number(number)
    if kind == "rank" and value is not None and value >= 1 and value == int(value):
        return BasisRule(kind, value)
    if kind in ("energy", "fraction") and value is not None and 0.0 < value <= 1.0:
        return BasisRule(kind, value)
    raise BadOption(
        "basis_rank", text, "energy=0.9 | rank=320 | fraction=0.5 | numerical | gap | optimal"
    )


def output_rank(text: str) -> OutputRank:
    """Parse the rank of the output; a migration's own is `MigrationOptions.output_rank`.

    Args:
        text: `exact`, `source`, an integer >= 1, `energy=e` (0 < e <= 1), `budget=BYTES`, or
            `mean=R` (R >= 1).

    Returns:
        The rank asked for.

    Raises:
        BadOption: when the text is none of these.
    """
    if text in ("exact", "source"):
        return OutputRank(text)
    if text.isdigit() and int(text) >= 1:
        return OutputRank("rank", int(text))
    kind, _, number = text.partition("=")
    value = _number(number)
    if kind == "energy" and value is not None and 0.0 < value <= 1.0:
        return OutputRank(kind, value)
    if kind == "budget" and number.isdigit() and int(number) >= 1:
        return OutputRank(kind, float(number))
    if kind == "mean" and value is not None and 1.0 <= value < float("inf"):
        return OutputRank(kind, value)
    known = "exact | source | a number >= 1 | energy=0.99 | budget=20000000 | mean=8"
    raise BadOption("rank", text, known)


def factor_rank(text: str) -> FactorRank:
    """Parse the rank of factors that are made; a migration's own is `MigrationOptions.factors`.

    Args:
        text: `exact`, or `energy=e` (0 < e <= 1), `max=k` (k >= 1), or both with a comma between.

    Returns:
        The rank asked for.

    Raises:
        BadOption: when the text is none of these.
    """
    if text == "exact":
        return FactorRank(1.0, None)
    energy, most = 1.0, None
    for piece in text.split(","):
        kind, _, number = piece.strip().partition("=")
        value = _number(number)
        if kind == "energy" and value is not None and 0.0 < value <= 1.0:
            energy = value
        elif kind == "max" and number.isdigit() and int(number) >= 1:
            most = int(number)
        else:
            raise BadOption("factor_rank", text, "energy=0.999,max=64 | energy=e | max=k | exact")
    return FactorRank(energy, most)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
