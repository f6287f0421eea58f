"""Fields of a LoraConfig: those of the installed peft, and those of its earlier versions."""

import dataclasses
from typing import Any

import peft
import pytest

from prolora_jax.adapters.formats.config_fields import require_plain
from prolora_jax.errors import AdapterRefused

# As 0.6.0 of peft has written them.
OLD = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "meta-llama/Llama-2-7b-hf",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 8,
    "rank_pattern": {},
    "revision": "main",
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}
# Whose values say that the factors are not the update, or of a base model that was changed.
REFUSED = frozenset(
    ("use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens", "arrow_config")
    + ("kasa_config", "monteclora_config")
)


def fields(**changed: Any) -> dict[str, Any]:
    return peft.LoraConfig(r=8, target_modules=["q_proj"], **changed).to_dict()


@pytest.mark.parametrize("said", [OLD, fields(), fields(use_rslora=True, lora_dropout=0.1)])
def test_plain_configurations_are_taken(said: dict[str, Any]) -> None:
    require_plain(said, "adapter")


@pytest.mark.parametrize("start", ["gaussian", "eva", "orthogonal", True, False])
def test_a_start_that_leaves_the_base_model_alone_is_taken(start: object) -> None:
    require_plain(OLD | {"init_lora_weights": start}, "adapter")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_a_start_that_changes_the_base_model_is_refused(start: str) -> None:
    with pytest.raises(AdapterRefused, match=f"{start}: its initialisation changed"):
        require_plain(OLD | {"init_lora_weights": start}, "adapter")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(peft.LoraConfig)])
def test_every_field_of_peft_is_known(field: str) -> None:
    if field in REFUSED:
        with pytest.raises(AdapterRefused, match="unsupported-algorithm"):
            require_plain(OLD | {field: {"some": "thing"}}, "adapter")
    elif field not in {"peft_type", "init_lora_weights"}:
        require_plain(OLD | {field: {"some": "thing"}}, "adapter")


def test_a_field_that_says_nothing_is_no_reason() -> None:
    for nothing in (None, False, {}, []):
        require_plain(OLD | {"use_twisted": nothing}, "adapter")
    with pytest.raises(AdapterRefused, match=r"use_twisted: True.*expected those of peft"):
        require_plain(OLD | {"use_twisted": True}, "adapter")
