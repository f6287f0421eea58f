"""The options of `prolora migrate` in groups, most used first; `--help` shows them so."""

from dataclasses import field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from cyclopts import Group, Parameter

from prolora_jax.plans.options import MigrationOptions

WHAT = Group("What moves", sort_key=1)
HOW = Group("How", sort_key=2)
MATCHING = Group("Matching", sort_key=3)
OUTPUT = Group("Output", sort_key=4)
CATALOG = Group("Catalog: several adapters, or a folder of them", sort_key=5)
GENERAL = Group("General", sort_key=6)

GROUPS = {
    WHAT: ("include", "exclude", "assume_base", "alpha_zero", "allow_partial"),
    HOW: (
        "method",
        "rank",
        "factor_rank",
        "dora",
        "fused",
        "scale",
        "min_similarity",
        "below",
        "rescale",
        "basis_rank",
        "gate",
        "gate_sides",
        "identical",
        "pair_rank",
        "rotation_min_cos",
        "rules",
    ),
    MATCHING: ("match", "match_score"),
    OUTPUT: ("dtype", "uniform_rank"),
}
"""Every option of a migration, in the order in which it is shown."""


AUTO = "auto"
"""Value of `--method` that is no arm: a refinement where one is possible, else a copy."""


def _grouped(name: str, *, decides: bool) -> type:
    """`MigrationOptions` for the command line: the same names and defaults, each in its group.

    Without a method there is None: `--refine` has to know whether one was asked for. `decides` adds
    `auto` to the methods.
    """
    hints, known = get_type_hints(MigrationOptions), {f.name: f for f in fields(MigrationOptions)}
    shown: list[tuple[str, Any, Any]] = [
        (name, Annotated[hints[name], Parameter(group=group)], field(default=known[name].default))
        for group, names in GROUPS.items()
        for name in names
    ]
    hint: Any = hints["method"] | None
    if decides:
        hint |= Literal["auto"]
    usual = Parameter(group=HOW, show_default=lambda _: MigrationOptions.method)
    unsaid = ("method", Annotated[hint, usual], field(default=None))
    shown = [unsaid if one[0] == "method" else one for one in shown]
    made = make_dataclass(name, shown, frozen=True)
    # What comes from the standard library, as all dataclasses made like this one, is no options.
    made.__module__, made.__doc__ = __name__, MigrationOptions.__doc__
    return made


if TYPE_CHECKING:
    GroupedOptions = MigrationOptions
    DecidingOptions = MigrationOptions
else:
    GroupedOptions = _grouped("GroupedOptions", decides=False)
    DecidingOptions = _grouped("DecidingOptions", decides=True)


def chosen(
    given: GroupedOptions, preset: str | None = None, reader: str | None = None
) -> MigrationOptions:
    """The options of a migration, checked.

    Args:
        given: on the command line.
        preset: `paper` for the gate and the method as published.
        reader: the program that the output is for; vLLM knows one rank for a whole adapter.

    Raises:
        BadOption: one has a value that it cannot have.
    """
    values: dict[str, Any] = {f.name: getattr(given, f.name) for f in fields(MigrationOptions)}
    if values["method"] is None:
        del values["method"]
    if preset == "paper":
        values |= {"method": "prolora", "gate": "phi", "gate_sides": "left"}
    if reader == "vllm":
        values["uniform_rank"] = True
    return MigrationOptions(**values)
