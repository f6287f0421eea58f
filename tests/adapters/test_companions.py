"""Tensors beside plain pairs: they never refuse a file, and none is lost without a word."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.adapters.inspection import inspect_adapter
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.unet.table import UNetTensors
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.plans.companions import (
    Fate,
    WholeLayers,
    carried,
    left_behind,
    plan_companions,
    require_no_whole_layers,
)
from prolora_jax.plans.options import MigrationOptions

TINY = UNetTensors((8, 16), (0, 1), (1, 0), mid_depth=1, cross_attention_dim=6, add_embedding_dim=8)
SPEC = spec_from_config(TINY, name="tiny")
WIDE = spec_from_config(
    UNetTensors((8, 32), (0, 1), (1, 0), mid_depth=1, cross_attention_dim=6, add_embedding_dim=8),
    name="wide",
)
BLOCK = "unet.down_blocks.1.attentions.0"
TO_Q = f"{BLOCK}.transformer_blocks.0.attn1.to_q"
PROJ = f"{BLOCK}.proj_in"
LDM = "input_blocks.4.1"
VECTOR = np.linspace(1, 2, 16, dtype=np.float32)
NORM = f"{BLOCK}.transformer_blocks.0.norm1"

# Key in a file, the layer that it is about, and what is added there.
KINDS = {
    f"lora_unet_{LDM.replace('.', '_')}_proj_in.diff_b": (PROJ, "bias"),
    f"diffusion_model.{LDM}.proj_in.diff_b": (PROJ, "bias"),
    f"{PROJ}.lora_B.bias": (PROJ, "bias"),
    f"{PROJ}.lora_B.default.bias": (PROJ, "bias"),
    f"lora_unet_{LDM.replace('.', '_')}_norm.w_norm": (f"{BLOCK}.norm", "weight"),
    "lora_unet_down_blocks_1_attentions_0_norm.b_norm": (f"{BLOCK}.norm", "bias"),
    f"diffusion_model.{LDM}.transformer_blocks.0.norm1.diff": (NORM, "weight"),
    f"diffusion_model.{LDM}.transformer_blocks.0.norm1.diff_b": (NORM, "bias"),
    "lora_unet_input_blocks_4_0_in_layers_0.w_norm": ("unet.down_blocks.1.resnets.0.norm1", "x"),
}


def pairs(alpha: float | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {
        f"{TO_Q}.lora_A.weight": rng.standard_normal((2, 16)).astype(np.float32),
        f"{TO_Q}.lora_B.weight": rng.standard_normal((16, 2)).astype(np.float32),
        f"{PROJ}.lora_A.weight": rng.standard_normal((2, 16, 1, 1)).astype(np.float32),
        f"{PROJ}.lora_B.weight": rng.standard_normal((16, 2, 1, 1)).astype(np.float32),
    }
    if alpha is not None:
        found[f"{PROJ}.alpha"] = np.asarray(alpha, np.float32)
    return found


def read(more: Mapping[str, np.ndarray], alpha: float | None = None) -> Adapter:
    return resolve(parse(pairs(alpha) | dict(more), {}, "a.safetensors"), SPEC)


def planned(adapter: Adapter, target=SPEC, **options):
    names = {path: path for path in target.modules if path in SPEC.modules}
    moved = {(module.path, module.path) for module in adapter.modules}
    return plan_companions(adapter, SPEC, target, names, moved, MigrationOptions(**options))


# --- reading ---


@pytest.mark.parametrize("key", KINDS)
def test_a_vector_beside_the_pairs_is_told_by_its_key(key):
    path, part = KINDS[key]
    vector = VECTOR[:8] if part == "x" else VECTOR
    adapter = read({key: vector})
    (companion,) = adapter.companions
    assert [m.path for m in adapter.modules] == [TO_Q, PROJ]
    assert (companion.key, companion.path) == (key, path)
    assert companion.part == part.replace("x", "weight")
    assert np.array_equal(companion.array, vector)
    assert inspect_adapter(adapter, "a").companions == {companion.part: (key,)}


BLOBS = {
    "text_encoder.text_model.embeddings.position_embedding.weight": np.zeros((3, 4)),
    "lora_te3_x.diff": np.zeros((3, 4)),
    "whatever": np.zeros((2, 2)),
    "anything.weight": np.zeros((0, 4)),
    "lora_unet_input_blocks_4_1_proj_in.diff_b": np.zeros(16),
    "lora_unet_input_blocks_4_1_proj_in.diff": np.zeros((16, 16)),
}


@pytest.mark.parametrize("key", BLOBS)
def test_tensors_without_effect_refuse_nothing_and_are_listed(key):
    adapter = read({key: BLOBS[key].astype(np.float16)})
    assert [(c.key, c.part) for c in adapter.companions] == [(key, "none")]
    (told,) = planned(adapter)
    assert (told.fate, told.share, left_behind((told,))) == (Fate.NO_EFFECT, 0.0, ())
    assert set(dump(adapter, "diffusers", SPEC)[0]) == set(pairs())


REFUSED = [
    ("whatever", np.ones((2, 2)), Refusal.UNKNOWN_KEYS),
    ("lora_unet_input_blocks_4_1_proj_in.diff", np.ones((16, 16)), Refusal.UNSUPPORTED_ALGORITHM),
    ("lora_unet_input_blocks_4_1_proj_in.dora_scale", VECTOR, Refusal.UNSUPPORTED_ALGORITHM),
    ("lora_unet_input_blocks_4_1_proj_in.set_weight", VECTOR * 0, Refusal.UNSUPPORTED_ALGORITHM),
]


@pytest.mark.parametrize(("key", "array", "code"), REFUSED)
def test_what_changes_a_layer_in_another_way_refuses_the_file_as_before(key, array, code):
    with pytest.raises(AdapterRefused, match=key) as caught:
        read({key: array})
    assert caught.value.code is code


@pytest.mark.parametrize("outer", [f"lora_unet_{LDM.replace('.', '_')}_proj_in.diff_b", "proj"])
def test_two_vectors_for_one_layer_are_one_or_none(outer):
    key = f"lora_unet_{PROJ.removeprefix('unet.').replace('.', '_')}.diff_b"
    other = f"{PROJ}.lora_B.bias" if outer == "proj" else outer
    (kept,) = read({key: VECTOR, other: VECTOR}).companions
    assert (kept.key, kept.path, kept.part) == (key, PROJ, "bias")
    message = f"{PROJ}: bias: found twice with different numbers, once as {other}; expected one"
    for second in (VECTOR + 1, VECTOR[:8]):
        with pytest.raises(AdapterRefused, match=message) as caught:
            read({key: VECTOR, other: second})
        assert caught.value.code is Refusal.DUPLICATE_MODULE


def test_companions_alone_are_no_adapter():
    key = f"{PROJ}.diff_b"
    with pytest.raises(AdapterRefused, match=f"unsupported-algorithm:full-diff: found key {key}"):
        parse({key: VECTOR}, {}, "a")


# --- where they go ---


@pytest.mark.parametrize("key", KINDS)
def test_a_vector_is_carried_where_layer_and_width_are_the_same(key):
    path, part = KINDS[key]
    adapter = read({key: VECTOR[:8] if part == "x" else VECTOR})
    (told,) = plan = planned(adapter)
    assert (told.source_path, told.path, told.fate) == (path, path, Fate.CARRIED)
    assert left_behind(plan) == ()
    (moved,) = carried(plan, adapter, MigrationOptions(scale=0.5))
    assert np.array_equal(moved.array, 0.5 * adapter.companions[0].array)
    squares = [
        np.linalg.norm(m.up.reshape(-1, 2) @ m.down.reshape(2, -1)) ** 2 for m in adapter.modules
    ]
    own = float(np.linalg.norm(adapter.companions[0].array.astype(float)) ** 2)
    assert told.share == pytest.approx(own / (own + sum(squares)), rel=1e-5)


@pytest.mark.parametrize("key", [key for key in KINDS if "_4_0_" not in key])
def test_a_vector_stays_where_the_width_is_another(key):
    (told,) = plan = planned(read({key: VECTOR}), WIDE)
    assert (told.path, told.fate) == (None, Fate.OTHER_WIDTH)
    assert left_behind(plan) == (f"partial: 1 tensors left behind, first {key}",)


def test_a_vector_stays_where_there_is_no_layer_or_it_is_not_wanted():
    strange = {f"unet.nowhere.{end}": VECTOR for end in ("diff_b", "w_norm")}
    assert {told.fate for told in planned(read(strange))} == {Fate.NO_LAYER}
    adapter = read({f"{PROJ}.diff_b": VECTOR, f"{NORM}.w_norm": VECTOR})
    fates = [told.fate for told in planned(adapter, exclude=("*proj_in",))]
    assert fates == [Fate.EXCLUDED, Fate.CARRIED]
    names = {path: path for path in SPEC.modules}
    # The bias of a layer whose update does not move is no use without it.
    (bias, norm) = plan_companions(adapter, SPEC, SPEC, names, {(TO_Q, TO_Q)}, MigrationOptions())
    assert (bias.fate, norm.fate) == (Fate.MODULE_SKIPPED, Fate.CARRIED)


@pytest.mark.parametrize("format", ["kohya-ldm", "kohya-diffusers", "comfyui"])
def test_every_vector_comes_back_in_formats_that_have_keys_for_it(format):
    keys = {f"{PROJ}.diff_b": VECTOR, f"{NORM}.w_norm": 2 * VECTOR, f"{NORM}.b_norm": 3 * VECTOR}
    adapter = read(keys)
    tensors, header = dump(adapter, format, SPEC)
    again = resolve(parse(tensors, header, "b"), SPEC)
    before = {(c.path, c.part): c.array.tolist() for c in adapter.companions}
    assert {(c.path, c.part): c.array.tolist() for c in again.companions} == before
    assert {key.rpartition(".")[2] for key in tensors} >= {"diff_b", "w_norm", "b_norm"}
    assert again.format == format


def test_formats_without_a_key_leave_it_out_with_a_warning(caplog):
    adapter = read({f"{NORM}.w_norm": VECTOR})
    for format in ("diffusers", "peft", "flax", "maxdiffusion"):
        caplog.clear()
        assert not [key for key in dump(adapter, format, SPEC)[0] if "norm" in key]
        text = f"1 tensors beside the pairs, first {NORM}.w_norm, have no key in format {format}"
        assert text in caplog.text


# --- peft ---


class Net(torch.nn.Module):
    """One layer under the name of a UNet's, and one to be trained whole."""

    def __init__(self):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(4, 8, 3)
        self.time_embedding = torch.nn.ModuleDict({"linear_1": torch.nn.Linear(8, 32)})


LINEAR = "unet.time_embedding.linear_1"


@pytest.mark.filterwarnings("ignore:.*invalid shape")  # peft takes its own bias for a shard
@pytest.mark.parametrize("alpha", [2, 4])
@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_the_bias_of_a_factor_is_read_and_written_as_peft_has_it(alpha, format):
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, lora_alpha=alpha, target_modules=["linear_1"], lora_bias=True, init_lora_weights=False
    )
    net: Any = inject_adapter_in_model(config, Net())
    layer = net.time_embedding["linear_1"]
    with torch.no_grad():
        zero = torch.zeros(1, 8)
        added = (layer(zero) - layer.base_layer(zero))[0].numpy()  # what peft adds to the bias
    state = {f"unet.{k}": v.numpy() for k, v in get_peft_model_state_dict(net).items()}
    header = {"lora_adapter_metadata": f'{{"unet.lora_alpha": {alpha}, "unet.r": 2}}'}
    adapter = resolve(parse(state, header, "a"), SPEC)
    np.testing.assert_allclose(adapter.companions[0].array, added, rtol=1e-5, atol=1e-7)
    tensors, written = dump(adapter, format, SPEC)
    if format == "peft":
        assert '"unet.lora_bias": true' in written["lora_adapter_metadata"]
    again = resolve(parse(tensors, written, "b"), SPEC)
    np.testing.assert_allclose(again.companions[0].array, added, rtol=1e-5, atol=1e-7)


def test_whole_layers_that_peft_saves_are_named_and_stay_behind_on_request():
    config = LoraConfig(r=2, target_modules=["linear_1"], modules_to_save=["conv_in"])
    net = inject_adapter_in_model(config, Net())
    state = get_peft_model_state_dict(net)
    tensors = {f"base_model.model.{key}": array.numpy() for key, array in state.items()}
    assert any("conv_in" in key for key in tensors)  # else peft has changed what it saves
    adapter = resolve(parse(tensors, {}, "a.safetensors"), SPEC)
    assert [module.path for module in adapter.modules] == [LINEAR]
    assert {companion.part for companion in adapter.companions} == {"layer"}
    message = "^a.safetensors: .*modules_to_save: found 2 tensors of whole layers, base_model.model"
    with pytest.raises(WholeLayers, match=message + ".*conv_in.*; move the LoRA part alone with"):
        planned(adapter)
    with pytest.raises(WholeLayers, match="--allow-partial"):
        require_no_whole_layers(adapter, allow_partial=False)
    plan = planned(adapter, allow_partial=True)
    assert {told.fate for told in plan} == {Fate.WHOLE_LAYER}
    assert left_behind(plan)[0].startswith("partial: 2 tensors left behind, first base_model.")
    assert carried(plan, adapter, MigrationOptions()) == ()
