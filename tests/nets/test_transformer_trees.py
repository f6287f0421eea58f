"""Adapters in MaxDiffusion's trees of Flux and Wan, against dense sums in diffusers' naming.

The trees are built here from a net's weights: diffusers' own map says which rows of the authors'
weights they are (`dit_tables`), and what MaxDiffusion's loaders make of the authors' names is
spelled out below.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from builders import delta
from dit_tables import in_original_naming, tiny, weights
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import save_file

import prolora_jax as pl
from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.recognition import spec_from_shapes
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.nets.adapters.tree import matrices, spec_of

Weights = Mapping[str, np.ndarray]
FLUX_BLOCK = {
    **{"img_attn.qkv": "attn/i_qkv", "img_attn.proj": "attn/i_proj"},
    **{"txt_attn.qkv": "attn/e_qkv", "txt_attn.proj": "attn/e_proj"},
    **{f"{one}_mlp.{n}": f"{one}_mlp/layers_{n}" for one in ("img", "txt") for n in (0, 2)},
    **{f"{one}_mod.lin": f"{one}_norm1/lin" for one in ("img", "txt")},
    **{"linear1": "linear1", "linear2": "linear2", "modulation.lin": "norm/lin"},
}
FLUX_OUTSIDE = {
    **{"time_in": "FlaxTimestepEmbedding_0", "guidance_in": "FlaxTimestepEmbedding_1"},
    "vector_in": "PixArtAlphaTextProjection_0",
    **{"in_layer": "linear_1", "out_layer": "linear_2"},
}
WAN_BLOCK = {"q": "query", "k": "key", "v": "value", "o": "proj_attn"}
SCANNED = {
    "double": "scanned_double_blocks/FluxTransformerBlock_0",
    "single": "scanned_single_blocks/FluxSingleTransformerBlock_0",
}
REFUSED = "norm_out.linear"


def nested(flat: Mapping[str, Any]) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    for key, value in flat.items():
        *above, last = [int(n) if n.isdecimal() else n for n in key.split("/")]
        level = tree
        for name in above:
            level = level.setdefault(name, {})
        level[last] = value
    return tree


def flux_tree(original: Weights, *, scanned: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for key in sorted(original):  # there are two blocks in a stack
        name, kernel = key.removesuffix(".weight"), original[key].T
        kind, _, _ = name.partition("_blocks.")
        if kind not in SCANNED:
            first, _, layer = name.partition(".")
            if layer in FLUX_OUTSIDE:
                place = f"time_text_embed/{FLUX_OUTSIDE[first]}/{FLUX_OUTSIDE[layer]}"
            else:
                place = {"linear": "proj_out", "adaLN_modulation.1": "norm_out/Dense_0"}.get(
                    layer, first
                )
            found[f"{place}/kernel"] = kernel
            continue
        _, number, role = name.split(".", 2)
        layer = FLUX_BLOCK[role]
        if not scanned:
            found[f"{kind}_blocks_{number}/{layer}/kernel"] = kernel
        elif layer == "linear1":
            width = kernel.shape[0]
            qkv, mlp = kernel[:, : 3 * width], kernel[:, 3 * width :]
            stacks.setdefault(f"{SCANNED[kind]}/lin_qkv/kernel", []).append(qkv)
            stacks.setdefault(f"{SCANNED[kind]}/mlp_and_out/lin_mlp/kernel", []).append(mlp)
        else:
            layer = layer.replace("linear2", "mlp_and_out/linear2")
            stacks.setdefault(f"{SCANNED[kind]}/{layer}/kernel", []).append(kernel)
    return nested(found | {key: np.stack(kernels) for key, kernels in stacks.items()})


def wan_tree(original: Weights, *, scanned: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for key in sorted(original):
        name, kernel = key.removesuffix(".weight"), original[key].T
        if not name.startswith("blocks."):
            place = name.replace("text_embedding", "condition_embedder/text_embedder/linear")
            place = place.replace("time_embedding", "condition_embedder/time_embedder/linear")
            place = place.replace("time_projection.1", "condition_embedder/time_proj")
            place = (
                place.replace("head.head", "proj_out").replace("r.0", "r_1").replace("r.2", "r_2")
            )
            found[f"{place}/kernel"] = kernel
            continue
        _, number, module, one = name.split(".")
        layer = {"0": "act_fn/proj", "2": "proj_out"}.get(one) or WAN_BLOCK[one]
        inside = f"{module.replace('self_attn', 'attn1').replace('cross_attn', 'attn2')}/{layer}"
        if scanned:
            stacks.setdefault(f"blocks/{inside}/kernel", []).append(kernel)
        else:
            found[f"blocks/{number}/{inside}/kernel"] = kernel
    return nested(found | {key: np.stack(kernels) for key, kernels in stacks.items()})


TREES = {"flux": (flux_tree, "flux1_dev", 32), "wan": (wan_tree, "wan21_t2v_1_3b", 24)}
CASES = pytest.mark.parametrize("name", TREES)


def plain(name: str) -> dict[str, np.ndarray]:
    drawn = weights(tiny(name), seed=1)
    return {k: w for k, w in drawn.items() if k.endswith(".weight") and w.ndim == 2}


def tree_of(name: str, tensors: Weights, *, scanned: bool = True) -> dict[str, Any]:
    build, base, width = TREES[name]
    return build(in_original_naming(tensors, base, width), scanned=scanned)


def adapter_of(name: str, *, every: int = 3) -> Adapter:
    """Two modules of three, so that blocks and parts of layers are left out; ranks and scales."""
    made = []
    for i, (key, weight) in enumerate(sorted(plain(name).items())):
        path = f"transformer.{key.removesuffix('.weight')}"
        if i % every and not path.endswith(REFUSED):
            random, rank = np.random.default_rng(i), (1, 2, 4)[i % 3]
            down = random.standard_normal((rank, weight.shape[1]), np.float32)
            up = random.standard_normal((weight.shape[0], rank), np.float32)
            made.append(LoraModule(path, down, up, (None, 3.0, 0.5)[i % 3 - i % 2]))
    return Adapter(tuple(made), "diffusers", origin="made")


def merged_dense(name: str, adapter: Adapter, scale: float) -> dict[str, np.ndarray]:
    dense = {key: w.astype(np.float64) for key, w in plain(name).items()}
    for module in adapter.modules:
        dense[f"{module.path.removeprefix('transformer.')}.weight"] += scale * delta(module)
    return dense


def flat(tree: Any, above: str = "") -> dict[str, Any]:
    found = {}
    for name, value in tree.items():
        inside = isinstance(value, Mapping) and not isinstance(value, nnx.Variable)
        found |= flat(value, f"{above}{name}/") if inside else {f"{above}{name}": value}
    return found


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "blocks"])
@CASES
def test_merging_is_the_dense_sum(name, scanned):
    adapter, before = adapter_of(name), tree_of(name, plain(name), scanned=scanned)
    want = flat(tree_of(name, merged_dense(name, adapter, 0.7), scanned=scanned))
    for params in (before, {"transformer": before, "vae": {"conv_in": {"kernel": np.ones(1)}}}):
        found = pl.merge(params, adapter, 0.7)
        inside = flat(found.get("transformer", found))
        assert set(inside) == set(want)
        for key, kernel in inside.items():
            assert_allclose(kernel, want[key], atol=2e-5, err_msg=key)
    again = flat(pl.unmerge(pl.merge(before, adapter), adapter))
    for key, kernel in flat(before).items():
        assert_allclose(again[key], kernel, atol=2e-5, err_msg=key)


def test_an_nnx_state_stays_one_and_what_is_not_touched_is_the_same():
    before = tree_of("wan", plain("wan"))
    state = nnx.State(nested({k: nnx.Param(jnp.asarray(v)) for k, v in flat(before).items()}))
    one = replace(adapter_of("wan"), modules=adapter_of("wan").modules[:1])
    found = pl.merge(state, one)
    assert isinstance(found, nnx.State)
    want = flat(pl.merge(before, one))
    changed = 0
    for key, value in flat(found).items():
        assert_array_equal(value.get_value(), want[key])
        changed += value is not flat(state)[key]
    assert changed == 1


@CASES
def test_a_tree_holds_the_adapter_and_gives_it_back(name):
    adapter = adapter_of(name)
    spec = spec_from_shapes(tiny(name), name=name)
    tree = pl.to_flax(adapter, spec, name="style")
    dense = merged_dense(name, adapter, 1)
    want = flat(tree_of(name, {key: w - plain(name)[key] for key, w in dense.items()}))
    pairs = flat(tree["transformer"])
    for key in sorted(pairs):
        place, _, end = key.partition("/lora-style/")
        if end == "down/kernel":
            update = pairs[key].astype(np.float64) @ pairs[f"{place}/lora-style/up/kernel"]
            assert_allclose(update, want[f"{place}/kernel"], atol=1e-5, err_msg=place)
    found = pl.from_flax(tree, spec)
    given = {m.path: m for m in adapter.modules}
    assert {m.path: m.rank for m in found.modules} == {p: m.rank for p, m in given.items()}
    for module in found.modules:
        assert_allclose(delta(module), delta(given[module.path]), atol=1e-5)


@CASES
def test_a_tree_is_read_as_the_model_it_is(name):
    params = tree_of(name, plain(name))
    found, weight = spec_of(params), matrices(params)
    assert set(found.modules) == {f"transformer.{k.removesuffix('.weight')}" for k in plain(name)}
    for key, want in plain(name).items():
        path = f"transformer.{key.removesuffix('.weight')}"
        assert found.modules[path].shape == want.shape
        if not path.endswith(REFUSED):
            assert_array_equal(weight(path), want)


def test_an_update_that_depends_on_the_weights_is_worked_out_from_a_stack(tmp_path):
    name, random = "transformer_blocks.1.attn.to_k", np.random.default_rng(0)
    down, up = (random.standard_normal(shape, np.float32) for shape in ((2, 32), (32, 2)))
    gains = 1 + random.random(32, np.float32)
    parts = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": gains}
    file = tmp_path / "dora.safetensors"
    save_file({f"transformer.{name}.{part}": array for part, array in parts.items()}, file)
    found = flat(pl.merge(tree_of("flux", plain("flux")), pl.load_adapter(file, structured=True)))
    dense = {key: weight.astype(np.float64) for key, weight in plain("flux").items()}
    summed = dense[f"{name}.weight"] + up.astype(np.float64) @ down
    norms = np.linalg.norm(summed, axis=1, keepdims=True)
    dense[f"{name}.weight"] = gains[:, None] * summed / norms
    for key, kernel in flat(tree_of("flux", dense)).items():
        assert_allclose(found[key], kernel, atol=1e-5, err_msg=key)


def test_a_stack_has_zeros_where_no_module_is():
    path = "transformer.transformer_blocks.18.attn.to_v"
    given = Adapter((LoraModule(path, *_ones(3072, 3072)),), "diffusers")
    tree = flat(pl.to_flax(given, published_spec("flux1-dev")))
    (up,) = [factor for key, factor in tree.items() if key.endswith("up/kernel")]
    assert up.shape == (19, 1, 9216)
    assert up[18, :, 6144:].all()
    assert np.count_nonzero(up) == 3072


def test_clip_stands_beside_the_transformer_as_beside_a_unet():
    """What a UNet's adapter has in a tree is held to diffusers' own model elsewhere."""
    layer, spec = "text_model.encoder.layers.0.mlp.fc1", published_spec("flux1-dev")
    pair, attention = _ones(3072, 768), "transformer.transformer_blocks.0.attn.to_q"
    clip = LoraModule(f"text_encoder.{layer}", *pair, 0.5)
    given = Adapter((LoraModule(attention, *_ones(3072, 3072)), clip), "diffusers", origin="a")
    tree = pl.to_flax(given, spec, name="style")
    both = tree["text_encoder"]["text_model"]["encoder"]["layers"]["0"]["mlp"]["fc1"]["lora-style"]
    assert_array_equal(both["down"]["kernel"], pair[0].T)
    assert_array_equal(both["up"]["kernel"], 0.5 * pair[1].T)
    found = {m.path: m for m in pl.from_flax(tree, spec).modules}
    assert {*found} == {attention, clip.path}
    assert_array_equal(delta(found[clip.path]), 0.5 * pair[1] @ pair[0])
    t5 = LoraModule("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q", *_ones(64, 64))
    with pytest.raises(AdapterRefused, match=r"text_encoder_2.* --exclude 'text_encoder\*'"):
        pl.to_flax(replace(given, modules=(t5,)), spec)


def _ones(out: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((1, width), np.float32), np.ones((out, 1), np.float32)


def test_what_has_no_certain_place_is_refused():
    spec = spec_from_shapes(tiny("flux"), name="flux")
    last = Adapter((LoraModule(f"transformer.{REFUSED}", *_ones(64, 32)),), "diffusers", origin="a")
    tree = tree_of("flux", plain("flux"))
    for put in (lambda: pl.to_flax(last, spec), lambda: pl.merge(tree, last)):
        with pytest.raises(AdapterRefused, match=r"norm_out.linear.*--exclude") as error:
            put()
        assert error.value.code == Refusal.UNMATCHED_MODULES
    with pytest.raises(AdapterRefused, match="merge the adapter"):
        pl.attach(tree, {"style": adapter_of("flux")})
    with pytest.raises(UsageError, match="keep_alpha"):
        pl.to_flax(adapter_of("flux"), spec, keep_alpha=True)
    qwen = spec_from_shapes(tiny("qwen"), name="qwen")
    path = next(p for p, m in qwen.modules.items() if len(m.shape) == 2)
    other = Adapter((LoraModule(path, *_ones(*qwen.modules[path].shape)),), "diffusers", origin="a")
    with pytest.raises(AdapterRefused, match="flux1, wan"):
        pl.to_flax(other, qwen)
    twice = pl.to_flax(adapter_of("flux"), spec, name="a")["transformer"]
    other = pl.to_flax(adapter_of("flux", every=99), spec, name="b")["transformer"]
    twice["img_in"] = other["img_in"]
    with pytest.raises(UsageError, match=r"found adapters a, b"):
        pl.from_flax(twice, spec)
    with pytest.raises(AdapterRefused, match="found 0 tensors"):
        pl.from_flax({"unet": {}}, spec)


def test_the_code_of_the_page_runs():
    page = (Path(__file__).resolve().parents[2] / "docs" / "dit.md").read_text()
    (code,) = re.findall(r"test_transformer_trees.py -->\n```python\n(.*?)```", page, re.DOTALL)
    params = tree_of("flux", plain("flux"))
    given = {"params": params, "adapter": adapter_of("flux")}
    ran: dict[str, Any] = given | {"spec": spec_from_shapes(tiny("flux"), name="flux")}
    exec(code, ran)
    assert_allclose(ran["again"]["img_in"]["kernel"], params["img_in"]["kernel"], atol=2e-5)
    assert len(ran["back"].modules) == len(given["adapter"].modules)
