"""Adapters of models that also see, and of models without a head: names that peft has for them.

Both have another level before their layers than a causal model has.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from language_models import (
    SIZES,
    make_language_pair,
    merged,
    of_newer_transformers,
    randomised,
)
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

from prolora_jax.adapters.adapter import Companion
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.adapters.formats.token_rows import with_rows
from prolora_jax.architectures.llm.facts import facts_of_config
from prolora_jax.architectures.llm.names import name_inside
from prolora_jax.errors import AdapterRefused
from prolora_jax.io.adapters.whole_files import convert_file
from prolora_jax.io.base_models.lm_facts import read_facts
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

VLLM = Writing(reader="vllm")
COPY = MigrationOptions(method="copy")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
INSIDE = "model.language_model"
ROOT = f"{INSIDE}.layers"
OF_PICTURES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def gemma(depth: int) -> Any:
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config=SIZES | {"num_hidden_layers": depth},  # type: ignore[arg-type]
        vision_config=OF_PICTURES,  # type: ignore[arg-type]
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """Folders of a model of three layers, of one without the second, and of an adapter."""
    root, source, target = tmp_path_factory.mktemp("seeing"), gemma(3), gemma(2)
    given = source.state_dict()
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            origin = given[name.replace(f"{ROOT}.1.", f"{ROOT}.2.")]
            tensor.copy_(origin + 0.05 * origin.std() * torch.randn(origin.shape))
    source.save_pretrained(root / "source")
    target.save_pretrained(root / "target")
    lora = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=r".*language_model.*\.(q_proj|down_proj)",
        rank_pattern={f"{ROOT}.0.self_attn.q_proj": 3},
        # Only by their whole names: as `EVA` writes patterns.
        alpha_pattern={f"^{ROOT}.2.mlp.down_proj": 10, f"{ROOT}.0.self_attn.q_proj": 5},
    )
    with of_newer_transformers():
        adapted: Any = get_peft_model(gemma(3), lora)
    randomised(adapted)
    adapted.save_pretrained(str(root / "adapter"))
    return root, source, target


def updates(net: Any, adapter: Path) -> dict[str, np.ndarray]:
    before, after = net.state_dict(), merged(net, adapter).state_dict()
    found = {key: (after[key] - before[key]).numpy() for key in before}
    return {key: delta for key, delta in found.items() if delta.any()}


@pytest.mark.parametrize("reader", [None, "vllm"])
def test_peft_finds_the_layers_in_the_target(
    pair: tuple[Path, Any, Any], reader: Any, tmp_path: Path
) -> None:
    root, source, target = pair
    out = tmp_path / "out"
    given = root / "adapter", root / "source", root / "target"
    migrate_file(*given, out, COPY, Writing(reader=reader))
    wanted, found = updates(source, given[0]), updates(target, out)
    assert len(found) == 2 * 2
    for name, delta in found.items():
        origin = name.replace(f"{ROOT}.1.", f"{ROOT}.2.")
        np.testing.assert_allclose(delta, wanted[origin], atol=2e-7)
    assert all(key.startswith(f"base_model.model.{ROOT}.") for key in load_file(out / WEIGHTS))
    if reader is None:
        config = json.loads((out / CONFIG).read_text())
        assert all(name.startswith(f"{ROOT}.") for name in config["target_modules"])
        assert verify_file(out).ok


def test_layers_of_pictures_stay_behind_where_that_is_allowed(
    pair: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    root, source, target = pair
    lora = LoraConfig(r=2, target_modules=r".*\.(q_proj|fc1)")
    with of_newer_transformers():
        adapted: Any = get_peft_model(gemma(3), lora)
    randomised(adapted)
    adapted.save_pretrained(str(tmp_path / "given"))
    given = tmp_path / "given", root / "source", root / "target"
    with pytest.raises(AdapterRefused, match="6 tensors of layers beside .*--allow-partial"):
        migrate_file(*given, tmp_path / "out", COPY)
    options = MigrationOptions(method="copy", allow_partial=True)
    report = migrate_file(*given, tmp_path / "out", options).report
    assert report.flags[0].startswith("partial: 6 tensors left behind, first model.vision_tower")
    wanted, found = updates(source, given[0]), updates(target, tmp_path / "out")
    assert {*found} == {f"{ROOT}.{i}.self_attn.q_proj.weight" for i in range(2)}
    for name, delta in found.items():
        origin = name.replace(f"{ROOT}.1.", f"{ROOT}.2.")
        np.testing.assert_allclose(delta, wanted[origin], atol=2e-7)
    assert verify_file(tmp_path / "out").ok
    convert_file(*(given[0], "peft", tmp_path / "v", given[1]), allow_partial=True, reader="vllm")
    assert updates(source, tmp_path / "v").keys() == {k for k in wanted if ROOT in k}
    options = MigrationOptions(method="copy", exclude=("*vision*",))
    assert migrate_file(*given, tmp_path / "other", options).report.flags == report.flags


@pytest.mark.parametrize(
    ("kind", "last"),
    [("qwen3", r"^(layers\.2\.self_attn\.q_proj)"), ("gpt2", r"^(h\.2\.attn\.c_proj)")],
)
def test_who_trains_without_a_head_gets_names_without_one(
    kind: str, last: str, tmp_path: Path
) -> None:
    """As makers of embeddings do, with transformers' `AutoModel`."""
    whole = make_language_pair(tmp_path, kind, depth=3, kept=(0, 2), layers=("c_proj", "q_proj"))
    source, target = whole.source_net.base_model, whole.target_net.base_model
    lora = LoraConfig(
        r=2,
        target_modules=r".*\.(q_proj|c_proj)",
        task_type="FEATURE_EXTRACTION",
        fan_in_fan_out=kind == "gpt2",
        # Only by its whole name, as outputs here have it.
        alpha_pattern={last: 5},
    )
    twin = type(source)(source.config)
    with of_newer_transformers():
        adapted: Any = get_peft_model(twin, lora)
    randomised(adapted)
    adapted.save_pretrained(str(tmp_path / "given"))
    out = tmp_path / "out"
    migrate_file(tmp_path / "given", whole.source, whole.target, out, COPY)
    wanted, found = updates(source, tmp_path / "given"), updates(target, out)
    assert found.keys() == {name for name in target.state_dict() if whole_name(name) in wanted}
    for name, delta in found.items():
        np.testing.assert_allclose(delta, wanted[whole_name(name)], atol=2e-7)
    assert json.loads((out / CONFIG).read_text())["task_type"] == "FEATURE_EXTRACTION"
    assert verify_file(out).ok
    # A server has the whole model all the same.
    weights = tmp_path / "given" / WEIGHTS
    save_file(load_file(weights), weights, {"format": "pt", "note": "of a maker"})
    migrate_file(tmp_path / "given", whole.source, whole.target, tmp_path / "v", COPY, VLLM)
    assert verify_file(tmp_path / "v").ok
    assert updates(whole.target_net, tmp_path / "v").keys() == {
        f"{whole.target_net.base_model_prefix}.{name}" for name in found
    }


def whole_name(name: str) -> str:
    """Name in the source, whose second layer the target lacks."""
    return name.replace("layers.1.", "layers.2.").replace("h.1.", "h.2.")


def test_without_its_base_model_nothing_says_how_layers_are_stored(
    pair: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    with pytest.raises(AdapterRefused, match="an adapter of a language model.*--base"):
        convert_file(pair[0] / "adapter", "gguf", tmp_path / "out.gguf")


def test_the_level_is_known_where_no_heads_are(tmp_path: Path) -> None:
    """As in the file of LLaVA 1.5, which says of its language model what it is, and no sizes."""
    inner: dict[str, Any] = {"model_type": "llama", "vocab_size": 32064}
    said = {"model_type": "llava", "text_config": inner}
    (tmp_path / "config.json").write_text(json.dumps(said))
    recipe = "slices: [{sources: [{layer_range: [2, 4]}]}]"
    (tmp_path / "mergekit_config.yml").write_text(recipe)
    facts = read_facts(tmp_path)
    assert facts is not None
    assert (facts.heads, facts.layers) == (0, (2, 3))
    config = transformers.LlavaConfig(
        text_config=inner | {"num_hidden_layers": 1},  # type: ignore[arg-type]
        vision_config=OF_PICTURES | {"model_type": "clip_vision_model"},  # type: ignore[arg-type]
    )
    with torch.device("meta"):
        net = transformers.LlavaForConditionalGeneration(config)
    names = {name for name, _ in net.named_modules()}
    assert name_inside("model.layers.0.self_attn.q_proj", facts.level) in names


def test_rows_are_found_by_the_name_that_an_embedding_has_inside() -> None:
    said = {"peft_type": "LORA", "trainable_token_indices": {f"{INSIDE}.embed_tokens": [7, 3]}}
    given = Companion("key", "lm.model.embed_tokens", "rows", np.zeros((2, 4), np.float32))
    assert with_rows(given, {HEADER_KEY: json.dumps(said)}, "a").rows == (7, 3)


@pytest.mark.parametrize("name", ["Gemma3", "Llama4", "SmolVLM", "Qwen2_5_VL", "Qwen3"])
def test_levels_are_those_of_transformers(name: str) -> None:
    sees = f"{name}ForConditionalGeneration"
    kind: Any = getattr(transformers, sees if name != "Qwen3" else "Qwen3ForCausalLM")
    config = kind.config_class()
    for inner in (config, *(getattr(config, f"{n}_config", config) for n in ("text", "vision"))):
        for field in ("num_hidden_layers", "depth"):
            if hasattr(inner, field):
                setattr(inner, field, 1)
    with torch.device("meta"):
        names = {name for name, _ in kind(config).named_modules()}
    facts = facts_of_config(config.to_dict())
    assert facts is not None
    for name in ("model.layers.0.self_attn.q_proj", "model.embed_tokens", "lm_head"):
        assert name_inside(name, facts.level) in names
