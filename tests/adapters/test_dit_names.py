"""Names of a transformer's adapter that leave open what is meant, or that nobody would read."""

import json

import numpy as np
import pytest

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.plans.companions import (
    Fate,
    WholeLayers,
    left_behind,
    plan_companions,
    require_no_whole_layers,
)
from prolora_jax.plans.options import MigrationOptions

WIDTH = 6
LAYERS = [f"transformer.blocks.{i}.attn1.to_{side}" for i in (0, 1) for side in "qk"]
SPEC = BaseModelSpec("made", {path: ModuleSpec(path, (WIDTH, WIDTH)) for path in LAYERS})


def read(*names: str, flat: bool = False, config: dict[str, int] | None = None) -> Adapter:
    """Pairs of rank 2 under these names, beside a configuration."""
    ends = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
    tensors = {}
    for name in names:
        tensors[f"{name}.{ends[0]}.weight"] = np.full((2, WIDTH), 0.5, np.float32)
        tensors[f"{name}.{ends[1]}.weight"] = np.ones((WIDTH, 2), np.float32)
    header = {"lora_adapter_metadata": json.dumps(config)} if config else {}
    return parse(tensors, header, "made.safetensors")


def test_blocks_of_two_transformers_are_not_those_of_one() -> None:
    given = read("transformer.blocks.0.attn1.to_q", "transformer_2.blocks.1.attn1.to_q")
    with pytest.raises(AdapterRefused, match="of transformer and of transformer_2; expected those"):
        resolve(given, SPEC)
    one = resolve(read("transformer_2.blocks.1.attn1.to_q"), SPEC)
    assert [m.path for m in one.modules] == ["transformer.blocks.1.attn1.to_q"]


T5 = "encoder.block.0.layer.0.SelfAttention.q"
KOHYA = ("lora_unet_blocks_0_attn1_to_q", f"lora_te3_{T5.replace('.', '_')}")
DIFFUSERS = ("transformer.blocks.0.attn1.to_q", f"text_encoder_2.{T5}")


@pytest.mark.parametrize(
    ("names", "format", "remedy"),
    [
        (KOHYA, "diffusers", "kohya-ldm"),
        (KOHYA, "comfyui", "kohya-ldm"),
        (DIFFUSERS, "kohya-ldm", "diffusers or peft"),
        (DIFFUSERS, "comfyui", "diffusers or peft"),
    ],
)
def test_a_text_encoder_is_not_written_under_another_s_name(
    names: tuple[str, str], format: str, remedy: str
) -> None:
    given = read(*names, flat=names is KOHYA)
    with pytest.raises(AdapterRefused, match=f"no layer of CLIP, .*; write {remedy}$"):
        dump(given, format, SPEC)


def test_a_text_encoder_keeps_the_names_that_it_was_read_under() -> None:
    tensors, _ = dump(read(*KOHYA, flat=True), "kohya-ldm", SPEC)
    assert f"{KOHYA[1]}.lora_down.weight" in tensors
    tensors, _ = dump(read(*DIFFUSERS), "diffusers", SPEC)
    assert f"{DIFFUSERS[1]}.lora_A.weight" in tensors
    clip = "text_model.encoder.layers.0.mlp.fc1"
    given = read("transformer.blocks.0.attn1.to_q", f"text_encoder.{clip}")
    tensors, _ = dump(given, "kohya-ldm", SPEC)
    assert f"lora_te1_{clip.replace('.', '_')}.lora_down.weight" in tensors


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "base_model.model.", "transformer."])
def test_a_configuration_of_the_transformer_is_that_of_names_without_one(prefix: str) -> None:
    said = {"transformer.r": 2, "transformer.lora_alpha": 1}
    given = read(f"{prefix}blocks.0.attn1.to_q", config=said)
    assert [m.scale for m in resolve(given, SPEC).modules] == [0.5]
    encoder = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert [m.scale for m in read(encoder, config=said).modules] == [1.0]


def test_configurations_of_two_transformers_are_no_choice() -> None:
    said = {f"{name}.lora_alpha": 1 for name in ("transformer", "transformer_2")}
    assert read("transformer_2.blocks.0.attn1.to_q", config=said).modules[0].scale == 0.5
    with pytest.raises(AdapterRefused, match="fields of two transformers, and names that do not"):
        read("blocks.0.attn1.to_q", config=said)


@pytest.mark.parametrize(
    ("down", "up", "code"),
    [
        ((2, 4, 1, 2, 2), None, Refusal.INCOMPLETE_PAIR),
        ((2, 4, 1, 2, 2), (WIDTH, 3, 1, 1, 1), Refusal.SHAPE_MISMATCH),
        ((2, WIDTH), (WIDTH, 2, 1, 1, 2), Refusal.SHAPE_MISMATCH),
        ((2, 4, 2, 2), (WIDTH, 2, 1, 1, 1), Refusal.SHAPE_MISMATCH),
    ],
)
def test_a_damaged_pair_of_a_convolution_over_time_is_not_left_behind(
    down: tuple[int, ...], up: tuple[int, ...] | None, code: Refusal
) -> None:
    shapes = {"lora_down": down} | ({} if up is None else {"lora_up": up})
    tensors = {f"patch_embedding.{k}.weight": np.ones(s, np.float32) for k, s in shapes.items()}
    with pytest.raises(AdapterRefused, match="patch_embedding: .* fetch the file again") as refused:
        parse({f"diffusion_model.{key}": a for key, a in tensors.items()}, {}, "made.safetensors")
    assert refused.value.code is code


@pytest.mark.parametrize("alpha", [(), (1,)])
def test_a_pair_of_a_convolution_over_time_is_left_behind_where_that_is_allowed(
    alpha: tuple[int, ...],
) -> None:
    tensors = {
        "diffusion_model.patch_embedding.lora_down.weight": np.ones((2, 4, 1, 2, 2), np.float32),
        "diffusion_model.patch_embedding.lora_up.weight": np.ones((WIDTH, 2, 1, 1, 1), np.float32),
        "diffusion_model.patch_embedding.alpha": np.ones(alpha, np.float32),
        "diffusion_model.blocks.0.attn1.to_q.lora_down.weight": np.ones((2, WIDTH), np.float32),
        "diffusion_model.blocks.0.attn1.to_q.lora_up.weight": np.ones((WIDTH, 2), np.float32),
    }
    given = resolve(parse(tensors, {}, "made.safetensors"), SPEC)
    with pytest.raises(WholeLayers, match=r"found 3 tensors of convolutions over time, .*partial$"):
        require_no_whole_layers(given, allow_partial=False)
    one, options = LAYERS[0], MigrationOptions(allow_partial=True)
    planned = plan_companions(given, SPEC, SPEC, {one: one}, [(one, one)], options)
    assert {c.fate for c in planned} == {Fate.WHOLE_LAYER}
    assert {c.key for c in planned} == {key for key in tensors if "patch_embedding" in key}
    (flag,) = left_behind(planned)
    assert flag.startswith("partial: 3 tensors left behind, first diffusion_model.patch_embedding")
    options = MigrationOptions(exclude=("*patch_embedding*",))
    planned = plan_companions(given, SPEC, SPEC, {one: one}, [(one, one)], options)
    assert [c.fate for c in planned] == [Fate.EXCLUDED] * 3
    written, _ = dump(given, "kohya-ldm", SPEC)
    assert {key.rpartition(".lora")[0] for key in written} == {"lora_unet_blocks_0_attn1_to_q"}
