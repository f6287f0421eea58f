"""Flax trees and MaxDiffusion: diffusers 0.39 names and transposes, Flax reads and writes."""

from typing import Any

import builders
import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from builders import assert_deltas, random_module
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file
from stock_trees import UNETS, stock_tree

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.flax_tree import from_flax, to_flax
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter, save_adapter

XL = spec_from_config(builders.TINY_XL_TABLE, name="xl")
SD15 = spec_from_config(builders.TINY_SD15_TABLE, name="sd15")
SPECS = pytest.mark.parametrize("spec", [XL, SD15], ids=["xl", "sd15"])
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TO_Q_PLACE = ("unet", "down_blocks_1", "attentions_0", "transformer_blocks_0", "attn1", "to_q")
ALPHAS = (None, 4.0, 3.0, -2.5)


# Where diffusers' Flax class has a layer, by its path; `.` and `/` are both `_` here.
STOCK = {place.replace("/", "_"): place for net in UNETS for place in stock_tree(net)}


def adapter_for(spec: Any, dtype: Any = np.float32) -> Adapter:
    """All layers of a net, several ranks and alphas, and a text encoder's layer."""
    modules = []
    for i, path in enumerate(spec.modules):
        drawn = random_module(path, spec, rank=(4, 2, 8)[i % 3], alpha=ALPHAS[i % 4], seed=i)
        down, up = drawn.down.astype(dtype), drawn.up.astype(dtype)
        modules.append(LoraModule(path, down, up, drawn.alpha))
    first = random_module(TO_Q, XL, seed=99)
    text = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    modules.append(LoraModule(text, first.down.astype(dtype), first.up.astype(dtype), 2.0))
    return Adapter(tuple(modules), "kohya-ldm", metadata={"prolora": "{}"}, origin="a")


def wanted(adapter: Adapter) -> dict[str, np.ndarray]:
    return {module.path: builders.delta(module) for module in adapter.modules}


def at(tree: Any, *place: str) -> Any:
    for name in place:
        tree = tree[name]
    return tree


# --- trees ---


@pytest.mark.proves("flax", "write", "names by diffusers 0.39, axes by torch")
@SPECS
def test_names_and_transposes_are_those_of_diffusers(spec):
    # The update of each kernel, `down @ up`, against the dense update at the place where diffusers'
    # class has the kernel, in torch's axes (linear (out, in) -> (in, out), OIHW -> HWIO).
    adapter = adapter_for(spec)
    tree = to_flax(adapter, spec)["unet"]
    for module in adapter.modules:
        if not module.path.startswith("unet."):
            continue
        flat = module.path.removeprefix("unet.").replace(".", "_")
        *place, _ = STOCK[f"{flat}_kernel"].split("/")
        lora = at(tree, *place)["lora-default"]
        dense = torch.from_numpy(builders.delta(module)).reshape(spec.modules[module.path].shape)
        kernel = dense.T if dense.ndim == 2 else dense.permute(2, 3, 1, 0)
        down, up = lora["down"]["kernel"], lora["up"]["kernel"].reshape(-1, kernel.shape[-1])
        update = down.astype(np.float64) @ up
        assert update.shape == tuple(kernel.shape)
        assert_allclose(update, kernel.numpy(), atol=1e-5, err_msg=module.path)


def test_a_place_in_the_tree():
    tree = to_flax(adapter_for(XL), XL, name="style")
    lora = at(tree, *TO_Q_PLACE)
    assert set(lora) == {"lora-style"}
    assert set(lora["lora-style"]) == {"down", "up"}
    text = at(tree, "text_encoder", "text_model", "encoder", "layers", "0", "mlp", "fc1")
    assert text["lora-style"]["up"]["kernel"].shape == (4, 32)


@SPECS
def test_trees_come_back(spec):
    adapter = adapter_for(spec)
    kept = from_flax(to_flax(adapter, spec, keep_alpha=True), spec)
    for module in adapter.modules:
        again = kept.module(module.path)
        assert again.alpha == module.alpha
        assert_array_equal(again.down, module.down)
        assert_array_equal(again.up, module.up)
    assert_deltas(from_flax(to_flax(adapter, spec), spec), wanted(adapter))


def test_the_bases_own_parameters_are_passed_over():
    adapter = adapter_for(XL, jnp.bfloat16)
    tree = to_flax(adapter, XL, keep_alpha=True)
    at(tree, *TO_Q_PLACE)["kernel"] = jnp.ones((32, 32))
    at(tree, *TO_Q_PLACE)["lora-default"]["up"]["kernel"] = jnp.ones((4, 32), jnp.bfloat16)
    again = from_flax({"params": tree}, XL)
    assert len(again.modules) == len(adapter.modules)
    assert again.module(TO_Q).up.dtype == np.dtype(ml_dtypes.bfloat16)
    bare = from_flax(tree["unet"], XL)
    assert len(bare.modules) == len(adapter.modules) - 1


def test_several_adapters_in_one_tree():
    first, second = adapter_for(XL), adapter_for(XL)
    tree = to_flax(first, XL, name="a")
    at(tree, *TO_Q_PLACE).update(at(to_flax(second, XL, name="b"), *TO_Q_PLACE))
    assert len(from_flax(tree, XL, name="b").modules) == 1
    with pytest.raises(AdapterRefused, match="found 2 adapters, a, b; expected one"):
        from_flax(tree, XL)


# --- files ---


@pytest.mark.proves("flax", "write", "flax.serialization reads")
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_flax_reads_what_is_written(tmp_path, dtype):
    adapter = adapter_for(XL, dtype)
    save_adapter(adapter, tmp_path / "out", format="flax", base=XL)
    content = (tmp_path / "out").read_bytes()
    tree = flax.serialization.msgpack_restore(content)
    assert flax.serialization.msgpack_serialize(tree) == content  # byte for byte Flax's own
    lora = at(tree, *TO_Q_PLACE)["lora-default"]
    module = adapter.module(TO_Q)
    assert_array_equal(lora["down"]["kernel"], module.down.T)
    again = load_adapter(tmp_path / "out", XL)
    assert again.format == "flax"
    assert again.metadata == {"prolora": "{}"}
    for module in adapter.modules:
        assert again.module(module.path).alpha == module.alpha
        assert again.module(module.path).up.tobytes() == module.up.tobytes()


@pytest.mark.proves("flax", "read", "flax.serialization writes")
def test_a_file_that_flax_wrote(tmp_path):
    adapter = adapter_for(SD15)
    tree = to_flax(adapter, SD15, name="style")
    at(tree, "unet", "conv_in")["bias"] = np.ones(3, np.float32)  # of the base
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    assert_deltas(load_adapter(tmp_path / "a.msgpack", SD15), wanted(adapter))


def test_extras_are_carried(tmp_path):
    extras = {"bundle_emb.token.clip_l": np.ones((2, 8), np.float32)}
    adapter = Adapter((random_module(TO_Q, XL),), "flax", extras)
    save_adapter(adapter, tmp_path / "out", base=XL)
    again = load_adapter(tmp_path / "out", XL)
    assert_array_equal(again.extras["bundle_emb.token.clip_l"], np.ones((2, 8)))


GOOD = flax.serialization.msgpack_serialize({"unet": {"a": np.ones((2, 2), np.float32)}})
BAD = [
    (GOOD[:-1], Refusal.NOT_AN_ADAPTER, "found no Flax msgpack .*truncated.*; expected a map"),
    (GOOD.replace(b"float32", b"object_"), Refusal.NOT_AN_ADAPTER, "found no Flax msgpack"),
    (GOOD.replace(b"float32", b"float16"), Refusal.NOT_AN_ADAPTER, "16 bytes for float16"),
    (b"\x81\xa1a" * 100_000 + b"\xc0", Refusal.NOT_AN_ADAPTER, "found no Flax msgpack"),
    (b"\x81\xa4unet\xa5hello", Refusal.UNKNOWN_KEYS, "found unet, which is no array"),
    (GOOD, Refusal.UNKNOWN_KEYS, "1 of 1 keys are unknown, first unet/a; expected"),
    (b"\x93\x01\x02\x03", Refusal.NOT_AN_ADAPTER, "found no Flax msgpack"),
]


@pytest.mark.parametrize(("content", "code", "match"), BAD)
def test_files_that_are_something_else(tmp_path, content, code, match):
    (tmp_path / "a.msgpack").write_bytes(content)
    with pytest.raises(AdapterRefused, match=match) as caught:
        load_adapter(tmp_path / "a.msgpack", XL)
    assert caught.value.code is code


def test_a_place_that_the_base_does_not_have(tmp_path):
    save_adapter(Adapter((random_module(TO_Q, XL),), "flax"), tmp_path / "out", base=XL)
    with pytest.raises(AdapterRefused, match="not in base model sd15, first unet/down_blocks_1/"):
        load_adapter(tmp_path / "out", SD15)


# --- MaxDiffusion ---


@SPECS
def test_one_rank_and_an_alpha_on_every_module(tmp_path, spec):
    adapter = adapter_for(spec)
    save_adapter(adapter, tmp_path / "out", format="maxdiffusion", base=spec)
    tensors = load_file(tmp_path / "out")
    names = {key.split(".")[0] for key in tensors}
    assert len(tensors) == 3 * len(names) == 3 * len(adapter.modules)
    assert {tensors[f"{name}.lora_down.weight"].shape[0] for name in names} == {8}
    assert {tensors[f"{name}.lora_up.weight"].shape[1] for name in names} == {8}
    assert all(float(tensors[f"{name}.alpha"]) > 0 for name in names)  # it drops negative ones
    assert any(name.startswith("lora_unet_input_blocks_") for name in names) == (spec is XL)
    assert_deltas(load_adapter(tmp_path / "out", spec), wanted(adapter))


@pytest.mark.proves("maxdiffusion", "write", "diffusers loads and fuses")
def test_diffusers_reads_files_for_maxdiffusion(tmp_path):
    # Of one scale: diffusers lends attention layers the commonest alpha (formats.md 0.3).
    modules = tuple(random_module(path, XL, rank=2 + i % 3) for i, path in enumerate(XL.modules))
    adapter = Adapter(modules, "kohya-ldm")
    outside = ("conv_in", "conv_out", "embedding")  # diffusers' converter garbles their flat names
    modules = tuple(m for m in modules if not any(name in m.path for name in outside))
    adapter = Adapter(modules, "kohya-ldm")
    save_adapter(adapter, tmp_path / "out.safetensors", format="maxdiffusion", base=XL)
    want = builders.deltas_by_diffusers(builders.TINY_XL, tmp_path / "out.safetensors")
    assert_deltas(adapter, want)


def test_convolutions_that_it_would_take_for_linear_layers_are_said(tmp_path, caplog):
    path = "unet.down_blocks.0.attentions.0.proj_in"
    adapter = Adapter((random_module(path, SD15),), "kohya-ldm")
    save_adapter(adapter, tmp_path / "out", format="maxdiffusion", base=SD15)
    assert f"{path} is a convolution that MaxDiffusion takes for a linear layer" in caplog.text
