"""Whole rows of an embedding: which tokens they are of, as peft's configuration says.

`trainable_token_indices` is a list, then for the model's input embedding, or lists by the name of
an embedding. The rows in the file are the trained ones themselves, not differences.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from prolora_jax.adapters.adapter import Companion
from prolora_jax.adapters.formats.lora_config import settings_of
from prolora_jax.architectures.llm.names import LM, names_around
from prolora_jax.errors import AdapterRefused, Refusal

FIELD = "trainable_token_indices"


def with_rows(companion: Companion, metadata: Mapping[str, str], origin: str) -> Companion:
    """A companion with the numbers of its rows, where it has rows.

    Args:
        companion: as its key says.
        metadata: header strings of the file, peft's configuration among them.
        origin: the file, for messages.

    Raises:
        AdapterRefused: the configuration does not say of which tokens the rows are.
    """
    if companion.part != "rows":
        return companion
    said = settings_of(companion.path, metadata, origin).get(FIELD)
    if isinstance(said, Mapping):
        inner = companion.path.partition(".")[2]
        inners = (inner, *names_around(inner)) if companion.path.startswith(LM) else (inner,)
        names = (name for name in said if any(f".{one}".endswith(f".{name}") for one in inners))
        said = said.get(next(names, None))
    rows = said if isinstance(said, Sequence) and not isinstance(said, str) else ()
    numbers = tuple(row for row in rows if type(row) is int and row >= 0)
    if len({*numbers}) != len(rows) or len(rows) != companion.array.shape[0]:
        raise AdapterRefused(
            f"{origin}: {companion.path}: found {companion.array.shape[0]} rows of an embedding, "
            f"and {len({*numbers})} tokens in {FIELD}; expected as many; fetch the "
            f"adapter_config.json that belongs to it",
            code=Refusal.INCOMPLETE_PAIR,
        )
    return replace(companion, rows=numbers)


def row_fields(companions: Iterable[Companion]) -> dict[str, object]:
    """The field of a configuration that says of which tokens rows are, by component."""
    found: dict[str, dict[str, list[int]]] = {}
    for companion in companions:
        if companion.part == "rows":
            component, _, path = companion.path.partition(".")
            name = path.rpartition(".")[2]
            found.setdefault(component, {})[name] = list(companion.rows)
    return {f"{component}.{FIELD}": rows for component, rows in found.items()}
