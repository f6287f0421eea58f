"""Whole layers that peft saves because its configuration names them (`modules_to_save`).

What is in the file is the trained layer itself, which stands in the place of the base model's.
Other whole tensors, such as biases that were trained with `bias="all"`, are in no such list.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from prolora_jax.adapters.adapter import Companion
from prolora_jax.adapters.formats.keys import PEFT_WRAPPER
from prolora_jax.adapters.formats.lora_config import saved_fields_of, settings_of
from prolora_jax.architectures.llm.layouts import (
    CLASSIFIERS,
    has_rows_of_tokens,
    is_classifier,
)
from prolora_jax.architectures.llm.names import LM, name_inside

FIELD = "modules_to_save"
_TASK = "task_type"
_LEVEL = f".{FIELD}"
_OTHER_LEVELS = (".base_layer.", ".original_module.")
_TIED = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
_TASKS = frozenset({"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
"""Tasks of models with a head for classes or places, which peft names for them."""


def with_saved(companion: Companion, metadata: Mapping[str, str], origin: str) -> Companion:
    """A companion of a language model's adapter, marked where the configuration names its layer.

    Args:
        companion: as its key says.
        metadata: header strings of the file, peft's configuration among them.
        origin: the file, for messages.

    Raises:
        AdapterRefused: the configuration cannot be used.
    """
    path = LM + companion.path if companion.path in CLASSIFIERS else companion.path
    name, _, end = companion.key.rpartition(".")
    if companion.part != "layer" or not path.startswith(LM) or end not in {"weight", "bias"}:
        return companion
    if PEFT_WRAPPER not in name or any(level in companion.key for level in _OTHER_LEVELS):
        return companion
    fields = settings_of(path, metadata, origin)
    said = fields.get(FIELD)
    said = said if isinstance(said, list) else ()
    pieces = name.partition(PEFT_WRAPPER)[2].partition(_LEVEL)[0].split(".")
    # The layer or one that it is in; peft looks at the ends of names.
    whole = [".".join(pieces[:count]) for count in range(1, len(pieces) + 1)]
    if fields.get("ensure_weight_tying") and has_rows_of_tokens(path):
        whole += _TIED  # one is named, and both are in the file
    if any(one.endswith(str(field)) for one in whole for field in said if field):
        return replace(companion, path=path, part="saved")
    return companion


def as_layers(companions: Iterable[Companion]) -> tuple[Companion, ...]:
    """Companions with saved layers as whole layers, where nothing is known to do with them."""
    return tuple(replace(c, part="layer") if c.part == "saved" else c for c in companions)


def saved_fields(
    companions: Iterable[Companion], metadata: Mapping[str, str], level: str
) -> dict[str, object]:
    """What peft's configuration says of saved layers, with the component in front.

    A name of the input's is kept where it is the end of a saved layer's; a layer that none is of is
    named whole. Layers outside of the numbered ones alone are meant by an end.

    Args:
        companions: of the adapter that is written.
        metadata: its header strings.
        level: that the model's layers stand in (`names.name_inside`).
    """
    saved = {c.path: None for c in companions if c.part == "saved"}
    if not saved:
        return {}
    said = saved_fields_of(metadata)
    names = [name_inside(path.removeprefix(LM), level) for path in saved]
    outside = [name for name in names if not any(p.isdecimal() for p in name.split("."))]
    given = [field for field in said.get(FIELD) or () if isinstance(field, str) and field]
    kept = [field for field in given if any(f".{n}".endswith(f".{field}") for n in outside)]
    others = [n for n in names if not any(f".{n}".endswith(f".{field}") for field in kept)]
    fields: dict[str, object] = {f"{LM}{FIELD}": [*kept, *others]}
    if said.get(_TASK) in _TASKS and any(map(is_classifier, saved)):
        fields[f"{LM}{_TASK}"] = said[_TASK]
    return fields
