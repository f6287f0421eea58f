"""PEFT's folders: peft writes and ours reads, ours writes and peft's own loader computes."""

import json
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import torch
from builders import TINY_SD15, TINY_XL, assert_deltas, random_module
from numpy.testing import assert_array_equal
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.numpy import load_file, save_file
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.layout import weight_to_matrix

XL = spec_from_config(builders.TINY_XL_TABLE, name="xl")
SD15 = spec_from_config(builders.TINY_SD15_TABLE, name="sd15")
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.1.resnets.0.conv1"
MIXED: dict[str, Any] = {
    "rank_pattern": {"attn1.to_q": 2, "^down_blocks.*attn2.to_k": 8},
    "alpha_pattern": {"attn1.to_q": 3, "transformer_blocks.0.attn2.to_v": 1, "conv1": -2},
}


def written_by_peft(
    folder: Path, net: dict[str, Any], name: str = "default", **options: Any
) -> Any:
    options = {"r": 4, "lora_alpha": 6, "target_modules": builders.EVERYTHING} | options
    config = LoraConfig(**options)
    model: Any = get_peft_model(builders.build_unet(net), config, adapter_name=name)
    randomise(model)
    model.save_pretrained(str(folder), selected_adapters=[name])
    return model


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def deltas(model: Any, component: str = "unet", name: str = "default") -> dict[str, np.ndarray]:
    """What peft adds to each layer, by our path."""
    found = {}
    layers: list[Any] = [(k, m) for k, m in model.named_modules() if isinstance(m, LoraLayer)]
    for key, layer in layers:
        path = key.removeprefix("base_model.model.")
        if component != "unet" and not path.startswith("text_model."):
            path = f"text_model.{path}"  # a level that one class has lost with transformers 5
        delta = layer.get_delta_weight(name).detach().numpy()
        found[f"{component}.{path}"] = weight_to_matrix(delta)
    return found


def read_by_peft(folder: Path, net: dict[str, Any]) -> dict[str, np.ndarray]:
    model = PeftModel.from_pretrained(builders.build_unet(net), str(folder))
    return deltas(model)


# --- reading ---


@pytest.mark.proves("peft", "read", "peft writes and computes")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        MIXED,
        MIXED | {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
    ],
    ids=["plain", "rslora", "patterns", "rslora-patterns", "gaussian"],
)
@pytest.mark.parametrize(("net", "spec"), [(TINY_XL, XL), (TINY_SD15, SD15)], ids=["xl", "sd15"])
def test_folders_of_peft(tmp_path, net, spec, options):
    model = written_by_peft(tmp_path, net, **options)
    adapter = load_adapter(tmp_path, spec)
    assert adapter.format == "peft"
    assert_deltas(adapter, deltas(model))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning")
def test_fan_in_fan_out_changes_nothing_here(tmp_path):
    # It says how the base weight is stored, `(in, out)`; the factors are as ever, and peft itself
    # sets it back on the linear layers that a UNet has.
    model = written_by_peft(tmp_path, TINY_XL, fan_in_fan_out=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": True}))
    assert_deltas(load_adapter(tmp_path, XL), deltas(model))


def test_an_adapter_with_a_name_of_its_own_stands_in_a_folder_of_its_own(tmp_path):
    model = written_by_peft(tmp_path, TINY_XL, name="style")
    assert (tmp_path / "style" / "adapter_config.json").is_file()
    assert_deltas(load_adapter(tmp_path, XL), deltas(model, name="style"))


ESCAPED = r"down_blocks\.1\.attentions\.0\.transformer_blocks\.0\.attn1\.to_q"


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module"])
@pytest.mark.parametrize(
    "pattern",
    ["{}.mid_block.resnets.0.conv1", r"{}\." + ESCAPED, rf"^({{}}\.{ESCAPED}|{{}}\.conv_in)"],
    ids=["plain", "escaped", "several"],
)
def test_patterns_with_the_levels_of_a_wrapped_net(tmp_path, wrapper, pattern):
    # A net that was compiled, or shared out to several processes, before peft was given it.
    wrapped: Any = torch.nn.Module()
    wrapped.add_module(wrapper, builders.build_unet(TINY_XL))
    patterns = {pattern.replace("{}", wrapper): 3}
    options: dict[str, Any] = {"rank_pattern": patterns, "alpha_pattern": patterns}
    config = LoraConfig(r=4, lora_alpha=6, target_modules=builders.EVERYTHING, **options)
    model: Any = get_peft_model(wrapped, config)
    randomise(model)
    model.save_pretrained(str(tmp_path))
    want = {k.replace(f".{wrapper}.", ".", 1): delta for k, delta in deltas(model).items()}
    adapter = load_adapter(tmp_path, XL)
    assert {module.rank for module in adapter.modules} == {3, 4}
    assert_deltas(adapter, want)


def test_one_file_with_the_configuration_beside_it(tmp_path):
    model = written_by_peft(tmp_path, TINY_XL, **MIXED)
    adapter = load_adapter(tmp_path / "adapter_model.safetensors", XL)
    assert_deltas(adapter, deltas(model))


TEXT = CLIPTextConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
)


@pytest.mark.parametrize(
    ("kind", "component"),
    [(CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2")],
)
def test_the_class_of_a_text_encoder_says_which_it_is(tmp_path, kind, component):
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "fc1"])
    model: Any = get_peft_model(kind(TEXT), config)
    randomise(model)
    model.save_pretrained(str(tmp_path))
    adapter = load_adapter(tmp_path, XL)
    assert_deltas(adapter, deltas(model, component))


# --- writing ---


@pytest.mark.parametrize(
    ("kind", "component"),
    [(CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2")],
)
def test_text_encoders_go_to_nets_with_the_level_that_one_class_has_lost(tmp_path, kind, component):
    module = text_module(component)
    module = LoraModule(module.path, module.down[:, :16], module.up[:24], 2.0)
    save_adapter(Adapter((module,), "peft"), tmp_path / "out", base=XL)
    (config,) = tmp_path.rglob("adapter_config.json")
    if kind is CLIPTextModel:  # of transformers 5; it does not load half of it
        with pytest.raises(ValueError, match="not found in the base model"):
            PeftModel.from_pretrained(kind(TEXT), str(config.parent))
        return
    model = PeftModel.from_pretrained(kind(TEXT), str(config.parent))
    assert_deltas(Adapter((module,), "peft"), deltas(model, component))


def mixed_modules(paths: list[str] | None = None) -> tuple[LoraModule, ...]:
    """All layers of the net, with several ranks and alphas, none and negative ones among them."""
    alphas = (None, 4.0, 3.0, -2.5, 4.0)
    return tuple(
        random_module(path, XL, rank=(4, 2, 4, 8)[i % 4], alpha=alphas[i % 5], seed=i)
        for i, path in enumerate(paths or XL.modules)
    )


@pytest.mark.proves("peft", "write", "peft loads")
def test_peft_reads_what_is_written(tmp_path):
    adapter = Adapter(mixed_modules(), "kohya-ldm")
    save_adapter(adapter, tmp_path / "out", format="peft", base=XL)
    names = sorted(path.name for path in tmp_path.rglob("*"))
    assert names == ["adapter_config.json", "adapter_model.safetensors", "out"]
    assert_deltas(adapter, read_by_peft(tmp_path / "out", TINY_XL))


def test_the_factors_are_kept_bit_for_bit(tmp_path):
    adapter = Adapter(mixed_modules(), "kohya-ldm")
    save_adapter(adapter, tmp_path / "out", format="peft", base=XL)
    again = load_adapter(tmp_path / "out", XL)
    for module in adapter.modules:
        found = again.module(module.path)
        assert found.scale == module.scale
        assert_array_equal(found.down, module.down)
        assert_array_equal(found.up, module.up)


def test_one_file_has_no_field_for_the_scale(tmp_path, caplog):
    adapter = Adapter(mixed_modules(), "kohya-ldm")
    save_adapter(adapter, tmp_path / "out.safetensors", format="peft", base=XL)
    assert all(
        key.startswith("base_model.model.") for key in load_file(tmp_path / "out.safetensors")
    )
    again = load_adapter(tmp_path / "out.safetensors", XL)
    assert "its scale is taken to be 1" in caplog.text
    assert {module.alpha for module in again.modules} == {None}
    assert_deltas(again, {m.path: builders.delta(m) for m in adapter.modules})


def text_module(component: str) -> LoraModule:
    module = random_module(TO_Q, XL, alpha=2.0)
    path = f"{component}.text_model.encoder.layers.0.mlp.fc1"
    return LoraModule(path, module.down, module.up, 2.0)


def test_every_network_has_a_folder_of_its_own(tmp_path):
    modules = (*mixed_modules([TO_Q, CONV]), text_module("text_encoder"))
    adapter = Adapter((*modules, text_module("text_encoder_2")), "kohya-ldm")
    save_adapter(adapter, tmp_path / "out", format="peft", base=XL)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "text_encoder",
        "text_encoder_2",
        "unet",
    ]
    again = load_adapter(tmp_path / "out", XL)
    assert_deltas(again, {m.path: builders.delta(m) for m in adapter.modules})
    # One file of several networks keeps them apart by what stands before peft's own prefix.
    save_adapter(adapter, tmp_path / "out.safetensors", format="peft", base=XL)
    assert_deltas(
        load_adapter(tmp_path / "out.safetensors", XL),
        {m.path: builders.delta(m) for m in adapter.modules},
    )


def test_a_base_models_name_is_kept():
    config = json.dumps({"unet.lora_alpha": 4, "unet.base_model_name_or_path": "somebody/xl"})
    module = random_module(TO_Q, XL)
    adapter = Adapter((module,), "diffusers", metadata={"lora_adapter_metadata": config})
    header = json.loads(dump(adapter, "peft", XL)[1]["lora_adapter_metadata"])
    assert header["unet.base_model_name_or_path"] == "somebody/xl"


# --- refusals ---


def test_existing_outputs(tmp_path):
    adapter = Adapter((random_module(TO_Q, XL),), "peft")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("kept")
    save_adapter(adapter, folder, base=XL)
    with pytest.raises(UsageError, match=r"out: output exists; expected a new name"):
        save_adapter(adapter, folder, base=XL)
    save_adapter(adapter, folder, base=XL, overwrite=True)
    assert (folder / "notes.txt").read_text() == "kept"
    with pytest.raises(UsageError, match="found a folder; expected the name of a file to write"):
        save_adapter(adapter, folder, base=XL, format="diffusers")
    with pytest.raises(UsageError, match="found a file; expected the name of a folder to write"):
        save_adapter(adapter, folder / "notes.txt", base=XL)


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prolora_jax.io.adapters.peft_folder.atomic.write_text", fail)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(Adapter((random_module(TO_Q, XL),), "peft"), tmp_path / "out", base=XL)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_hold_no_adapter_or_several(tmp_path):
    with pytest.raises(UsageError, match="found a folder with no adapter_config.json; expected"):
        load_adapter(tmp_path)
    for name in ("a", "b"):
        save_adapter(Adapter((random_module(TO_Q, XL),), "peft"), tmp_path / name, base=XL)
    with pytest.raises(UsageError, match="found a folder with adapters a, b; .*name one"):
        load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("files", "code", "match"),
    [
        ({"adapter_config.json": "{}"}, Refusal.MISSING_FILE, "no weights; .*safe_serialization$"),
        (
            {"adapter_config.json": "{}", "adapter_model.bin": ""},
            Refusal.PICKLE,
            "found adapter_model.bin, a pickle; expected adapter_model.safetensors; save",
        ),
    ],
)
def test_folders_without_weights(tmp_path, files, code, match):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(AdapterRefused, match=match) as caught:
        load_adapter(tmp_path)
    assert caught.value.code is code


def test_a_pickle_in_a_folder_is_read_where_that_is_allowed(tmp_path):
    folder = tmp_path / "out"
    save_adapter(Adapter((random_module(TO_Q, XL),), "peft"), folder, base=XL)
    given = load_adapter(folder, XL)
    weights = folder / "adapter_model.safetensors"
    tensors = {key: torch.from_numpy(array) for key, array in load_file(weights).items()}
    torch.save(tensors, folder / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(AdapterRefused, match="a pickle; .*--allow-pickle"):
        load_adapter(folder, XL)
    assert load_adapter(folder, XL, allow_pickle=True).fingerprint == given.fingerprint


CONFIGS = [
    ({"peft_type": "HRA", "lora_alpha": 1}, "unsupported-algorithm:HRA"),
    ({"use_qalora": True}, "unsupported-algorithm:QALoRA"),
    ({"layer_replication": [[0, 4], [2, 5]]}, "unsupported-algorithm:layer-replication"),
    ({"init_lora_weights": "pissa_niter_4"}, "unsupported-algorithm:pissa_niter_4"),
    ("[]", "adapter_config.json: found no JSON object; expected peft's LoraConfig"),
    ({"lora_alpha": "x"}, "adapter_config.json. cannot be used: found could not convert"),
]


@pytest.mark.parametrize(("config", "match"), CONFIGS)
def test_configurations_of_something_else(tmp_path, config, match):
    save_adapter(Adapter((random_module(TO_Q, XL),), "peft"), tmp_path / "out", base=XL)
    text = config if isinstance(config, str) else json.dumps({"lora_alpha": 1} | config)
    (tmp_path / "out" / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterRefused, match=match):
        load_adapter(tmp_path / "out", XL)


def test_a_file_of_two_adapters(tmp_path):
    module = random_module(TO_Q, XL)
    tensors = {}
    for path, name in ((TO_Q, "style"), (TO_Q.replace("to_q", "to_k"), "person")):
        tensors[f"{path}.lora_A.{name}.weight"] = module.down
        tensors[f"{path}.lora_B.{name}.weight"] = module.up
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterRefused, match="found 2 adapters, person, style; expected one") as e:
        load_adapter(tmp_path / "a.safetensors")
    assert e.value.code is Refusal.DUPLICATE_MODULE
