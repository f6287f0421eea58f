"""What stands beside a language model's weights, and says what its tensors do not."""

from pathlib import Path

from prolora_jax.architectures.llm.facts import LmFacts, facts_of_config, facts_of_gguf
from prolora_jax.architectures.llm.stacked import layers_of_recipe
from prolora_jax.io.containers.packed.gguf_file import GgufFile
from prolora_jax.io.documents import BadDocument, parse_json, read_yaml_document
from prolora_jax.io.guarded import is_regular, read_small

_CONFIG, _RECIPE = "config.json", "mergekit_config.yml"
_LARGEST = 2**20
"""Bytes of a configuration."""


def read_facts(path: Path) -> LmFacts | None:
    """The facts of a language model; None where nothing says them.

    Args:
        path: its folder, or one of its files: `config.json` stands beside the weights, or a GGUF
            file says it itself.
    """
    if path.suffix == ".gguf":
        file = GgufFile(path)
        return facts_of_gguf(file.values, dict.fromkeys(file.keys))
    folder = path if path.is_dir() else path.parent
    config = folder / _CONFIG
    if not is_regular(config):
        return None
    try:
        found = parse_json(read_small(config, _LARGEST))
    except (OSError, BadDocument):
        return None  # whoever needs it says that it is not there
    facts = facts_of_config(found) if isinstance(found, dict) else None
    return None if facts is None else facts._replace(layers=_layers(folder / _RECIPE))


def _layers(recipe: Path) -> tuple[int, ...] | None:
    if not is_regular(recipe):
        return None
    try:
        return layers_of_recipe(read_yaml_document(recipe))
    except BadDocument:
        return None  # weights tell what they can
