"""Header strings: what is carried over, rewritten for another base model, or dropped.

Everything that says how an adapter was trained stays (formats.md 5.4). What says which base model
it is for is rewritten when the adapter moves, because programs sort files by it.
"""

from collections.abc import Mapping, Sequence

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.architectures.spec import BaseModelSpec

PROVENANCE = "prolora"
HASHES = frozenset({"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"})
"""They identify a file by its numbers; only who writes the numbers can say them (`io.hashes`)."""

# What kohya's trainer writes for a base model of each family: (ss_base_model_version,
# ss_v2, modelspec.architecture). SSD-1B and the like are trained by its SDXL script, BK-SDM by its
# SD 1 script. SD 2.1 is missing on purpose: the values differ between its two predictions, which
# no tensor tells apart, and the refiner is one that it does not train.
_SD1 = ("sd_v1", "False", "stable-diffusion-v1/lora")
_SDXL = ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora")
_BY_FAMILY = {
    **dict.fromkeys(("sd15", "bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny"), _SD1),
    **dict.fromkeys(("sdxl", "ssd-1b", "vega", "koala-700m", "koala-1b"), _SDXL),
}
_BASE_FIELDS = ("ss_base_model_version", "ss_v2", "modelspec.architecture")
# Names and hashes of the checkpoint that was trained on.
_BASE_FILE = frozenset({"ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash"})
# Which of a trainer's modules made it (`lycoris.kohya`), and with which algorithm.
_NETWORK, _NETWORK_ARGUMENTS = "ss_network_module", "ss_network_args"


def for_target(
    metadata: Mapping[str, str], target: BaseModelSpec, *, merged_from: Sequence[str]
) -> dict[str, str]:
    """The header of an adapter that has moved to another base model.

    Args:
        metadata: header strings of the adapter before.
        target: the base model that it is for now.
        merged_from: names of the files that it was made from.

    Returns:
        The same strings without those that name or describe the old base model; where the input
        had them and the target's family is known, with those of that.
    """
    kept = {key: text for key, text in metadata.items() if key not in _BASE_FILE | {HEADER_KEY}}
    values = _BY_FAMILY.get(target.family or "")
    for index, key in enumerate(_BASE_FIELDS):
        if kept.pop(key, None) is not None and values is not None:
            kept[key] = values[index]
    if any(key.startswith("modelspec.") for key in kept):
        kept["modelspec.merged_from"] = ", ".join(merged_from)
    return kept


def trained_with(adapter: Adapter) -> dict[str, str]:
    """`ss_network_dim` and `ss_network_alpha` as the tensors have them, where the file had them."""
    # Modules of other algorithms have no rank that these strings could mean.
    ranks = () if adapter.structured else adapter.ranks
    alphas = {module.scale * module.rank for module in adapter.modules}
    facts = {
        "ss_network_dim": str(ranks[0]) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(min(alphas)) if ranks and len(alphas) == 1 else "Dynamic",
    }
    return {key: text for key, text in facts.items() if key in adapter.metadata}


def as_plain_lora(metadata: Mapping[str, str]) -> dict[str, str]:
    """Header strings of an adapter whose factors were made: no program takes it for the other kind.

    Args:
        metadata: of an adapter of another algorithm.
    """
    kept = {key: text for key, text in metadata.items() if key != _NETWORK_ARGUMENTS}
    return kept | ({_NETWORK: "networks.lora"} if _NETWORK in kept else {})


def stripped(metadata: Mapping[str, str]) -> dict[str, str]:
    """Only what readers need, where the file comes from, and its licence, which is its author's."""
    kept = {"format", PROVENANCE}
    return {k: text for k, text in metadata.items() if k in kept or "license" in k.lower()}
