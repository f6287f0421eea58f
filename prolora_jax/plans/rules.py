"""Rules: options of a migration that hold for some target modules only, by patterns of paths."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase

import msgspec

from prolora_jax.errors import Refusal, UsageError

IDLE_RULE = "idle-rule: "
"""Flag of a file, with the number of a rule that no module of the target follows."""


class BadRule(UsageError):
    """Raised when a rule has no pattern, an option that there is not, or a value it cannot have."""

    def __init__(self, number: int, found: str):
        super().__init__(
            f"rules: rule {number}: {found}. Check the rules of --config.", code=Refusal.BAD_OPTION
        )


@dataclass(frozen=True)
class ModuleRule:
    """Options of the modules whose path matches; the first rule that matches is followed.

    Attributes:
        path: pattern of target modules' paths (`*attn2*`), or several; of biases and norms that
            move along, their layers' paths.
        method: instead of the migration's, as are all that follow; None: the migration's.
        basis_rank: of the source's and the target's weight.
        min_similarity: of the gate.
        rank: of the output.
        scale: of the update.
    """

    path: str | tuple[str, ...]
    method: str | None = None
    basis_rank: str | None = None
    min_similarity: float | None = None
    rank: str | None = None
    scale: float | None = None

    @property
    def patterns(self) -> tuple[str, ...]:
        """What `path` says."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def overrides(self) -> dict[str, object]:
        """The options that it sets, by name."""
        said = {name: getattr(self, name) for name in OVERRIDES}
        return {name: value for name, value in said.items() if value is not None}

    def matches(self, path: str) -> bool:
        """Whether a module's path matches one of its patterns."""
        return any(fnmatchcase(path, pattern) for pattern in self.patterns)


OVERRIDES = tuple(field.name for field in fields(ModuleRule) if field.name != "path")
"""Options that a rule may set."""


def followed(rules: tuple[ModuleRule, ...], path: str) -> int | None:
    """The place of the first rule that matches a path; None where none does."""
    return next((place for place, rule in enumerate(rules) if rule.matches(path)), None)


def idle_rules(rules: tuple[ModuleRule, ...], paths: Iterable[str]) -> tuple[str, ...]:
    """A flag for each rule that no module follows: nothing matches it, or rules before it do.

    Args:
        rules: of a migration.
        paths: of all target modules.
    """
    if not rules:
        return ()
    used = {followed(rules, path) for path in paths}
    return tuple(f"{IDLE_RULE}{place + 1}" for place in range(len(rules)) if place not in used)


def read_rules(document: object) -> tuple[ModuleRule, ...]:
    """Rules of a job file.

    Args:
        document: what stands behind `rules:`.

    Returns:
        The rules; whether their values can be had, `MigrationOptions` checks.

    Raises:
        UsageError: it is no list.
        BadRule: one of them is no map, has no path or has something else.
    """
    if not isinstance(document, list):
        raise UsageError(
            f"rules: found {type(document).__name__}; expected a list, each with a path and "
            "options. Check the rules of --config.",
            code=Refusal.BAD_OPTION,
        )
    return tuple(_rule(number, entry) for number, entry in enumerate(document, start=1))


def _rule(number: int, entry: object) -> ModuleRule:
    known = ("path", *OVERRIDES)
    if not isinstance(entry, dict):
        raise BadRule(number, f"found {entry!r}; expected a map with a path and options")
    for name in entry:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise BadRule(number, f"found {name}{meant}; expected {', '.join(known)}")
    # YAML takes `rank: 8` for a number.
    texts = {
        name: str(value) if name == "rank" and type(value) is int else value
        for name, value in entry.items()
    }
    try:
        return msgspec.convert(texts, ModuleRule)
    except msgspec.ValidationError as error:
        raise BadRule(number, f"found a value of another kind: {error}") from None
