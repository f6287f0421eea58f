"""`prolora migrate --refine` and `--method auto`: the job of `prolora refine`, as `migrate`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from prolora_jax.cli.migrate_options import AUTO, GroupedOptions, chosen
from prolora_jax.cli.refine import refine
from prolora_jax.errors import Refusal, UsageError

FOLLOWED = (
    "source",
    "target",
    "out_path",
    "overwrite",
    "format",
    "strip_metadata",
    "allow_pickle",
    "ignore_license",
    "common",
)
"""Parameters of `migrate` that `refine` has, too, with the same meaning."""
_FLAGS = {"for_reader": "for"}  # no name for a parameter in Python
METHOD = "copy"
"""Where a student begins."""


def migrate_refined(command: Callable[..., int], asked: Mapping[str, Any]) -> int:
    """Refine what was to be migrated.

    Args:
        command: `migrate`: what it has beside `FOLLOWED` may not be asked for.
        asked: its arguments by name.

    Raises:
        UsageError: something is asked for that a refinement does not do.
    """
    options: GroupedOptions = asked["options"]
    decides = str(options.method) == AUTO and not asked["refine"]
    named = f"--method {AUTO}" if decides else "--refine"
    usual = {name: one.default for name, one in signature(command).parameters.items()}
    others = asked.keys() - {*FOLLOWED, "inputs", "options", "refine"}
    wanted = {name: asked[name] for name in usual if name in others and asked[name] != usual[name]}
    if options.method is not None and options.method != METHOD and not decides:
        wanted["method"] = options.method
    changed = chosen(replace(options, method=METHOD)).changed()
    wanted |= {name: changed[name] for name in changed if name not in ("method", "assume_base")}
    if wanted:
        found = ", ".join(_as_words(name, value) for name, value in wanted.items())
        raise UsageError(
            f"migrate {named}: found {found}; expected none of that: a refinement teaches whole "
            "copies, at the input's rank and dtype, and plans nothing; leave it away, or leave "
            f"{named} away",
            code=Refusal.BAD_OPTION,
        )
    if asked["out_path"] is None:
        raise UsageError(
            f"migrate {named}: found no --out; expected the file to write, or for several adapters "
            "the folder; name it",
            code=Refusal.BAD_OPTION,
        )
    followed = {name: asked[name] for name in FOLLOWED}
    assumed = options.assume_base
    return refine(*asked["inputs"], **followed, assume_base=assumed, decides=decides)


def _as_words(name: str, value: object) -> str:
    """An option as it may have been given."""
    flag = "--" + _FLAGS.get(name, name.replace("_", "-"))
    given = isinstance(value, str | float | int | Path) and value is not True
    return f"{flag} {value}" if given else flag
