"""What a LoraConfig may say: fields that are followed, fields without effect, and refusals.

peft adds fields from version to version, some of which change what the factors mean. A field that
nobody here knows is refused by its name, unless it says nothing.
"""

from collections.abc import Mapping
from typing import Any

from prolora_jax.errors import AdapterRefused, Refusal

# Initialisations that also change the base weight: the factors alone are not the update.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Fields by which the factors mean something else than `alpha / rank * B @ A` in their own layer.
_MEANS_MORE = {
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "layer_replication": "layer-replication",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Of peft's kinds, those whose tensors are read, and the algorithm that they are then of
# (algorithms.table). Modules of LoRA may be plain or of DoRA.
READ_KINDS = {
    "LORA": "lora",
    "LOHA": "loha",
    "LOKR": "lokr",
    "IA3": "ia3",
    "OFT": "peft-oft",
    "BOFT": "peft-boft",
    "ADALORA": "adalora",
    "VERA": "vera",
}

_FOLLOWED = frozenset(
    ("peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora")
    + ("use_dora", "init_lora_weights", "trainable_token_indices")
)
"""Fields that are read."""

_IN_TENSORS = frozenset(
    ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_bias")
    + ("bias", "modules_to_save", "fan_in_fan_out", "ensure_weight_tying", "target_parameters")
)
"""Fields whose effect is which tensors are in the file; or, of `fan_in_fan_out`, which of the two
ways the base model has its weights, which its own names say."""

_WITHOUT_EFFECT = frozenset(
    ("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
    + ("peft_version", "lora_dropout", "runtime_config", "megatron_config", "megatron_core")
    # How training began or ran. Where it changed the base weights, `init_lora_weights` says so.
    + ("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config")
    + ("qalora_group_size",)  # of `use_qalora`
    # peft before 0.3, and other trainers' own.
    + ("merge_weights", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr")
)

_KNOWN = _FOLLOWED | _IN_TENSORS | _WITHOUT_EFFECT | _MEANS_MORE.keys()


def kind_of(fields: Mapping[str, Any]) -> str:
    """The name of what a configuration is of, in peft; also as `PeftType.LORA`."""
    return str(fields.get("peft_type") or "LORA").rpartition(".")[2].upper()


def require_plain(fields: Mapping[str, Any], origin: str) -> None:
    """Refuse a configuration by which the factors are not the update.

    Args:
        fields: of one component.
        origin: the file, for messages.

    Raises:
        AdapterRefused: the initialisation has changed the base weights, or a field says that the
            factors mean more, or nobody here knows what it says.
    """
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise AdapterRefused(
            f"{origin}: unsupported-algorithm:{start}: its initialisation changed the base "
            f"weights, so the factors alone are not the update; expected plain LoRA; convert it "
            f"with peft's path_initial_model_for_weight_conversion",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )
    kind = kind_of(fields)
    names = [name for field, name in _MEANS_MORE.items() if fields.get(field)]
    name = next(iter(names), None if kind in READ_KINDS else kind)
    if name is not None:
        raise AdapterRefused(
            f"{origin}: unsupported-algorithm:{name}: found it in the LoraConfig; expected plain "
            f"LoRA; merge it and extract a plain LoRA first",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )
    unknown = sorted(field for field, value in fields.items() if value and field not in _KNOWN)
    if unknown and kind == "LORA":
        said = ", ".join(f"{field}: {fields[field]!r:.60}" for field in unknown[:5])
        raise AdapterRefused(
            f"{origin}: unsupported-algorithm:{unknown[0]}: found fields in the LoraConfig that "
            f"are not known here, {said}; expected those of peft's plain LoRA; merge the adapter "
            f"and extract a plain LoRA, or take a field out that has no effect",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )
