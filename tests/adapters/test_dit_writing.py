"""Adapters of diffusion transformers as they are written, read back by diffusers and by the rows.

Where diffusers' own converters are wrong, or have none for original names, what a file adds is
computed by the map of rows, which comes from its converters of checkpoints.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformer_nets import (
    KINDS,
    Pair,
    Tensors,
    added_in_diffusers,
    base,
    built,
    cut_by_map,
    dense,
    original_shapes,
    pairs,
    row_map,
    shapes,
)

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.dumping import concrete_format, dump
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.errors import AdapterRefused, UsageError
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.adapters.whole_files import convert_file

FAMILIES = sorted(KINDS)
ALPHAS = (4.0, 2.0, 1.0, 8.0)
"""At rank 4; each module has another than the one before."""


def adapter_of(given: dict[str, Pair]) -> tuple[Adapter, dict[str, float]]:
    alphas = {name: ALPHAS[i % 4] for i, name in enumerate(given)}
    modules = (LoraModule(f"transformer.{n}", *given[n], alphas[n]) for n in given)
    return Adapter(tuple(modules), "diffusers"), {n: alpha / 4 for n, alpha in alphas.items()}


def added(tensors: Tensors, down: str, up: str, prefix: str, names: dict[str, str]) -> Tensors:
    """Dense updates of a file by the names of its layers: B A, times alpha / rank."""
    found = {}
    for key, a in tensors.items():
        if key.endswith(down):
            stem = key.removesuffix(down)
            alpha = float(tensors.get(f"{stem}.alpha", len(a)))
            whole = tensors[stem + up].astype(np.float64) @ a.astype(np.float64)
            found[names[stem.removeprefix(prefix)]] = alpha / len(a) * whole
    return found


def assert_close(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        error = np.linalg.norm(found[name] - update) / np.linalg.norm(update)
        assert error < 1e-6, (name, error)


@pytest.mark.proves(
    ("Flux.1", "Flux.2", "HunyuanVideo", "LTX-Video", "Qwen-Image", "SD 3.5", "Wan", "Z-Image"),
    "write",
    "diffusers loads and fuses",
)
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_fuses_what_is_written_for_it(family: str) -> None:
    given = pairs(shapes(family))
    adapter, scales = adapter_of(given)
    format = concrete_format("same", adapter, base(family))
    tensors, header = dump(adapter, format, base(family))
    assert format == "diffusers"
    assert "lora_adapter_metadata" not in header
    ends = {".".join(key.split(".")[-2:]) for key in tensors}
    assert ends == {"lora_A.weight", "lora_B.weight"}
    assert all(key.startswith("transformer.") for key in tensors)
    found = added_in_diffusers(family, built(family).double(), tensors)
    assert_close(found, dense(given, scales))


@pytest.mark.proves(
    ("Flux.1", "Flux.2", "HunyuanVideo", "LTX-Video", "Qwen-Image", "SD 3.5", "Wan", "Z-Image"),
    "write",
    "original names, rows by diffusers' converters of checkpoints",
)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choice", ["kohya", "comfyui"])
def test_original_names_hold_the_same_update_in_the_original_layers(
    family: str, choice: str
) -> None:
    given = pairs(shapes(family))
    adapter, scales = adapter_of(given)
    format = concrete_format(choice, adapter, base(family))
    tensors, _ = dump(adapter, format, base(family))
    known = original_shapes(family)
    if choice == "kohya":
        names = {name.replace(".", "_"): name for name in known}
        found = added(tensors, ".lora_down.weight", ".lora_up.weight", "lora_unet_", names)
    else:
        assert not any("alpha" in key for key in tensors)
        names = {name: name for name in known}
        found = added(tensors, ".lora_A.weight", ".lora_B.weight", "diffusion_model.", names)
    assert found.keys() == known.keys()
    assert_close(cut_by_map(family, found), dense(given, scales))
    again = resolve(parse(tensors, {}, "again"), base(family))
    assert {m.rank for m in again.modules} == {4}  # the blocks are cut out again


@pytest.mark.parametrize("family", ["flux2", "ltx", "qwen", "wan"])
def test_blocks_under_comfyui_s_names_are_read_by_diffusers_of_some_families(family: str) -> None:
    given = pairs({name: shape for name, shape in shapes(family).items() if "block" in name})
    adapter, scales = adapter_of(given)
    tensors, _ = dump(adapter, "comfyui", base(family))
    assert_close(added_in_diffusers(family, built(family).double(), tensors), dense(given, scales))


def test_parts_that_share_down_keep_their_rank_and_their_numbers() -> None:
    given = pairs(original_shapes("flux"))
    kohya = {
        f"lora_unet_{name.replace('.', '_')}.{end}": array
        for name, pair in given.items()
        for end, array in zip(
            ("lora_down.weight", "lora_up.weight", "alpha"),
            (*pair, np.array(2.0, "f4")),
            strict=True,
        )
    }
    adapter = resolve(parse(kohya, {}, "given"), base("flux"))
    tensors, _ = dump(adapter, concrete_format("kohya", adapter, base("flux")), base("flux"))
    assert tensors.keys() == kohya.keys()
    for key, array in kohya.items():
        np.testing.assert_array_equal(tensors[key], array)


def test_parts_with_a_down_each_get_all_their_ranks_and_an_alpha_that_keeps_the_update(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A public converter stacked q, k and v to three times the rank and kept alpha: a third of the
    # strength.
    names = [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    given = pairs({name: shapes("flux")[name] for name in names})
    modules = (LoraModule(f"transformer.{name}", *pair, 2.0) for name, pair in given.items())
    adapter = Adapter(tuple(modules), "diffusers")
    tensors, _ = dump(adapter, "kohya-ldm", base("flux"))
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    assert tensors.keys() == {f"{stem}.{end}" for end in ("lora_down.weight", "lora_up.weight")} | {
        f"{stem}.alpha"
    }
    assert tensors[f"{stem}.lora_down.weight"].shape[0] == 12
    assert float(tensors[f"{stem}.alpha"]) == 6.0
    assert "1 layers, first transformer.double_blocks.0.img_attn.qkv" in caplog.text


def test_a_part_that_was_not_trained_gets_rows_of_zeros() -> None:
    name = "single_transformer_blocks.1.attn.to_k"
    given = pairs({name: shapes("flux")[name]})
    adapter, scales = adapter_of(given)
    tensors, _ = dump(adapter, "comfyui", base("flux"))
    (original, segments) = row_map("flux")[name]
    assert segments is not None
    whole = tensors[f"diffusion_model.{original}.lora_B.weight"]
    (first, end) = segments[0]
    assert whole.shape == (original_shapes("flux")[original][0], 4)
    assert not whole[:first].any()
    assert not whole[end:].any()
    np.testing.assert_allclose(
        whole[first:end] @ tensors[f"diffusion_model.{original}.lora_A.weight"],
        dense(given, scales)[name],
        rtol=1e-5,
    )


@pytest.mark.proves(
    ("Flux.1", "Wan"),
    "write",
    "peft reads and merges",
)
@pytest.mark.parametrize("family", ["wan", "flux"])
def test_a_folder_of_peft_s_is_anchored_and_merged_by_peft(family: str, tmp_path: Path) -> None:
    # A pattern of peft's hits every path that ends so: `proj_out` is one of a block, too.
    given = pairs(shapes(family))
    adapter, scales = adapter_of(given)
    save_adapter(adapter, tmp_path / "out", format="peft", base=base(family))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert all(pattern.startswith("^") for pattern in config["alpha_pattern"])
    net = built(family).double()
    before = {name: net.get_submodule(name).weight.detach().clone() for name in given}
    merged = PeftModel.from_pretrained(net, str(tmp_path / "out")).merge_and_unload()
    found = {n: (merged.get_submodule(n).weight.detach() - w).numpy() for n, w in before.items()}
    assert_close(found, dense(given, scales))
    again = resolve(load_adapter(tmp_path / "out"), base(family))
    assert {m.path: m.scale for m in again.modules} == {
        f"transformer.{name}": scale for name, scale in scales.items()
    }


def test_a_single_file_of_peft_s_is_one_that_diffusers_reads(tmp_path: Path) -> None:
    adapter, scales = adapter_of(pairs(shapes("wan")))
    out = tmp_path / "out.safetensors"
    save_adapter(adapter, out, format="peft", base=base("wan"))
    found = added_in_diffusers("wan", built("wan").double(), load_file(out))
    assert_close(found, dense(pairs(shapes("wan")), scales))


@pytest.mark.parametrize("format", ["kohya-diffusers", "flax", "maxdiffusion", "diffusers-old"])
def test_formats_that_no_reader_of_transformers_has_are_refused(format: str) -> None:
    adapter, _ = adapter_of(pairs(shapes("wan")))
    with pytest.raises(AdapterRefused, match="found an adapter of a transformer, to be written as"):
        dump(adapter, format, base("wan"))


def test_sixteen_bits_and_powers_of_two_round_nothing() -> None:
    given = {
        name: (down.astype(np.float16), up.astype(np.float16))
        for name, (down, up) in pairs(shapes("wan")).items()
    }
    adapter, scales = adapter_of(given)
    tensors, _ = dump(adapter, "diffusers", base("wan"))
    for name, (down, up) in given.items():
        a, b = (tensors[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
        assert a.dtype == b.dtype == np.float16
        exact = scales[name] * up.astype(np.float64) @ down.astype(np.float64)
        np.testing.assert_array_equal(b.astype(np.float64) @ a.astype(np.float64), exact)


@pytest.mark.parametrize("format", ["kohya-ldm", "comfyui"])
def test_a_text_encoder_goes_along_under_the_format_s_own_name(format: str) -> None:
    tail = "text_model.encoder.layers.0.self_attn.q_proj"
    given = pairs({"x_embedder": shapes("flux")["x_embedder"], tail: (8, 8)})
    modules = (
        LoraModule("transformer.x_embedder", *given["x_embedder"], 4.0),
        LoraModule(f"text_encoder.{tail}", *given[tail], 4.0),
    )
    layers = {**base("flux").modules, f"text_encoder.{tail}": ModuleSpec(tail, (8, 8))}
    tensors, _ = dump(Adapter(modules, "diffusers"), format, BaseModelSpec("both", layers))
    names = {key.partition(".lora_")[0].removesuffix(".alpha") for key in tensors}
    assert (
        names
        == {
            "kohya-ldm": {"lora_unet_img_in", f"lora_te1_{tail.replace('.', '_')}"},
            "comfyui": {"diffusion_model.img_in", f"text_encoders.clip_l.transformer.{tail}"},
        }[format]
    )


def test_names_of_a_published_model_are_known_by_its_id(tmp_path: Path):
    module = "transformer.transformer_blocks.0.attn.to_k"
    given = {f"{module}.lora_A.weight": np.ones((1, 3072), np.float32)}
    given[f"{module}.lora_B.weight"] = np.arange(3072, dtype=np.float32)[:, None]
    save_file(given, tmp_path / "given.safetensors")
    out = tmp_path / "out.safetensors"
    convert_file(tmp_path / "given.safetensors", "kohya", out, "flux1-dev")
    written = load_file(out)
    layer = "lora_unet_double_blocks_0_img_attn_qkv"
    assert {key.partition(".")[0] for key in written} == {layer}
    up = written[f"{layer}.lora_up.weight"]
    assert np.array_equal(up[3072:6144], given[f"{module}.lora_B.weight"])
    assert not up[:3072].any()
    assert not up[6144:].any()
    with pytest.raises(UsageError, match="flux1-dev"):  # several have it, under unlike names
        convert_file(tmp_path / "given.safetensors", "kohya", tmp_path / "other.safetensors")
