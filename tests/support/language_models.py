"""Tiny language models by transformers: a source, and a target made of chosen layers of it."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,  # heads times width is not the hidden size: a missing transpose shows
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
_LAYER = re.compile(r"((?:model\.layers|transformer\.h|gpt_neox\.layers)\.)(\d+)(\..*)")


@dataclass(frozen=True)
class Family:
    """How transformers calls a kind of model, what its sizes are, and which layers peft adapts."""

    name: str
    layers: tuple[str, ...]
    sizes: Mapping[str, Any]
    depth: str = "num_hidden_layers"

    def build(self, depth: int, seed: int) -> Any:
        """A model with random weights; norms and biases as well, which are ones and zeros else."""
        torch.manual_seed(seed)
        config = getattr(transformers, f"{self.name}Config")(**self.sizes, **{self.depth: depth})
        head = "GPT2LMHeadModel" if self.name == "GPT2" else f"{self.name}ForCausalLM"
        head = head.replace("Text", "")
        model = getattr(transformers, head)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        return model


_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
_SQUARE = {key: size for key, size in SIZES.items() if key != "head_dim"}
FAMILIES = {
    "llama": Family("Llama", _LLAMA, SIZES | {"tie_word_embeddings": True}),
    "mistral": Family("Mistral", _LLAMA, SIZES),
    "qwen2": Family("Qwen2", _LLAMA, _SQUARE),
    "qwen3": Family("Qwen3", _LLAMA, SIZES),
    "gemma2": Family("Gemma2", _LLAMA, SIZES),
    # Norms of q and k, and layers that see a window beside those that see all.
    "gemma3": Family("Gemma3Text", _LLAMA, SIZES),
    "phi3": Family("Phi3", _FUSED, _SQUARE),
    "olmo2": Family("Olmo2", _LLAMA, _SQUARE),
    "qwen2-moe": Family(
        "Qwen2Moe",
        (*_LLAMA[:4], "shared_expert.up_proj", "shared_expert.down_proj", "shared_expert_gate"),
        _SQUARE
        | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
        | {"shared_expert_intermediate_size": 24},
    ),
    "gpt2": Family(
        "GPT2",
        ("c_attn", "c_proj", "c_fc"),
        {"vocab_size": 40, "n_embd": 32, "n_head": 4, "n_positions": 32},
        depth="n_layer",
    ),
    # GPT-2's names, and weights the other way round than GPT-2 has them.
    "starcoder": Family(
        "GPTBigCode",
        ("c_attn", "c_proj", "c_fc"),
        {"vocab_size": 40, "n_embd": 32, "n_head": 4, "n_positions": 32, "n_inner": 48},
        depth="n_layer",
    ),
    "gpt-neox": Family(
        "GPTNeoX",
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        {key: size for key, size in _SQUARE.items() if key != "num_key_value_heads"},
    ),
}


EXPERTS = {
    "mixtral": Family(
        "Mixtral",
        (*_LLAMA[:4], "w1", "w2", "w3"),
        SIZES | {"num_local_experts": 3, "num_experts_per_tok": 2},
    ),
    "qwen3-moe": Family(
        "Qwen3Moe",
        _LLAMA,
        SIZES | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
    ),
}
"""Models with experts, and what transformers 4 calls their layers, as all their files do."""

TURNED = {
    "gpt-oss": Family(
        "GptOss",
        _LLAMA[:4],
        SIZES | {"num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 32},
    ),
    "llama4": Family(
        "Llama4Text",
        _LLAMA[:4],
        SIZES
        | {"num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size": 32}
        | {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 24},
    ),
}
"""Models whose files have one tensor for a layer of all experts, as `(in, out)`."""


@dataclass(frozen=True)
class LanguagePair:
    """Folders of both models and of the adapter, the models, and which layers were kept."""

    source: Path
    target: Path
    adapter: Path
    source_net: Any
    target_net: Any
    kept: tuple[int, ...]

    def source_name(self, name: str) -> str:
        """Name in the source of what the target has under this name."""
        return from_layer(name, self.kept)


def from_layer(name: str, kept: tuple[int, ...]) -> str:
    """A name with the number of the layer that this one was made from."""
    found = _LAYER.fullmatch(name)
    return name if found is None else f"{found[1]}{kept[int(found[2])]}{found[3]}"


def make_language_pair(
    folder: Path,
    family: str,
    *,
    depth: int = 4,
    kept: tuple[int, ...] = (0, 2, 3),
    copies: bool = False,
    layers: tuple[str, ...] = (),
    **lora: Any,
) -> LanguagePair:
    """Both models by transformers, the adapter by peft; the target has noise on chosen layers.

    Args:
        folder: where all is saved.
        family: of `FAMILIES`.
        depth: of the source.
        kept: layers of the source that the target is made of.
        copies: whether the file has copies of the base model's embedding and head.
        layers: that are adapted; those of the family when empty.
        lora: fields of peft's configuration beside or instead of the usual ones.
    """
    kind = (FAMILIES | EXPERTS | TURNED)[family]
    source, target = kind.build(depth, seed=0), kind.build(len(kept), seed=1)
    given = source.state_dict()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            origin = given[from_layer(name, kept)]
            noise = torch.randn(origin.shape, generator=generator) * origin.std()
            tensor.copy_(origin + 0.05 * noise)
    source.save_pretrained(folder / "source")
    target.save_pretrained(folder / "target")
    net = kind.build(depth, seed=0)
    layers = layers or kind.layers
    write_lora(net, folder / "adapter", layers, copies=copies, **lora)
    return LanguagePair(
        folder / "source", folder / "target", folder / "adapter", source, target, kept
    )


def write_lora(
    model: Any, folder: Path, layers: tuple[str, ...], *, copies: bool = False, **fields: Any
) -> Any:
    """A folder of peft's with random factors; returns peft's model."""
    usual: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": list(layers),
        "task_type": "CAUSAL_LM",
    }
    if isinstance(model, transformers.GPT2LMHeadModel):
        usual["fan_in_fan_out"] = True
    with of_newer_transformers():
        adapted: Any = get_peft_model(model, LoraConfig(**(usual | fields)))
    randomised(adapted)
    adapted.save_pretrained(str(folder), save_embedding_layers=copies)
    return adapted


def merged(net: Any, adapter: Path) -> Any:
    """A copy of the net with an adapter added by peft."""
    twin = type(net)(net.config).eval()
    twin.load_state_dict(net.state_dict())
    with of_newer_transformers():
        return PeftModel.from_pretrained(twin, str(adapter)).merge_and_unload()


@contextmanager
def of_newer_transformers() -> Iterator[None]:
    """peft asks for what transformers has given another name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def randomised(adapted: torch.nn.Module) -> None:
    """Numbers instead of the zeros that an untrained adapter has."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
