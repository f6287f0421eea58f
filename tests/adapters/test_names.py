"""Names of modules in files of many programs: each is read as what it means, or refused by name."""

import json
import re

import numpy as np
import pytest

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.dumping import concrete_format, dump
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.identify import identified, spec_from_config
from prolora_jax.architectures.naming import WRAPPERS, flat
from prolora_jax.architectures.recognition import spec_from_shapes
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.spellings import ldm_paths
from prolora_jax.architectures.unet.table import UNetTensors, unet_table
from prolora_jax.errors import AdapterRefused, Refusal

TINY = UNetTensors((8, 16), (0, 1), (1, 0), mid_depth=1, cross_attention_dim=6, add_embedding_dim=8)
SPEC = spec_from_config(TINY, name="tiny")
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
LDM_TO_Q = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
LAYER = "text_model.encoder.layers.1.self_attn.v_proj"


def pair(name: str, shape: tuple[int, ...], *, ends=("lora_down", "lora_up"), rank: int = 2):
    """Factors under one name; the numbers tell one module from another."""
    rng = np.random.default_rng(len(name))
    down = rng.standard_normal((rank, *shape[1:])).astype(np.float32)
    up = rng.standard_normal((shape[0], rank, *(1 for _ in shape[2:]))).astype(np.float32)
    return {f"{name}.{ends[0]}.weight": down, f"{name}.{ends[1]}.weight": up}


def paths(tensors: dict[str, np.ndarray], spec: BaseModelSpec = SPEC) -> list[str]:
    return [module.path for module in resolve(parse(tensors, {}, "a"), spec).modules]


# --- text encoders: a closed set of components ---

ENCODERS = [
    (f"{head}{name}.{tail}", component)
    for head in ("text_encoders.", "")
    for tail in ("transformer.", "")
    for name, component in (
        ("clip_l", "text_encoder"),
        ("clip_h", "text_encoder"),
        ("clip_g", "text_encoder_2"),
    )
]
ENCODERS += [
    ("cond_stage_model.transformer.", "text_encoder"),
    ("conditioner.embedders.0.transformer.", "text_encoder"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
]


@pytest.mark.proves("comfyui", "read", "names that ComfyUI's own loader lists")
@pytest.mark.parametrize(("prefix", "component"), ENCODERS)
def test_text_encoders_under_every_prefix(prefix, component):
    layer = flat(LAYER) if prefix.startswith("lora_te") else LAYER
    assert paths(pair(prefix + layer, (4, 4))) == [f"{component}.{LAYER}"]


STRANGE = [
    "text_encoder_lora.",
    "text_encoder3x.",
    "text_encoders.",
    "text_encoders.clip_x.transformer.",
    "text_encoder_21.",
    "clip_v.",
    "lora_prior_te_",
]


@pytest.mark.parametrize("prefix", STRANGE)
def test_an_unknown_component_is_refused_by_its_name(prefix):
    tensors = pair(TO_Q, (16, 16)) | pair(prefix + LAYER, (4, 4))
    with pytest.raises(AdapterRefused, match=f"1/2 modules are not in .*first {prefix}") as caught:
        paths(tensors)
    assert caught.value.code is Refusal.UNMATCHED_MODULES


@pytest.mark.parametrize("rest", ["encoder.layers.x.mlp.fc1", "vision_model.head", "fc1"])
def test_what_is_no_layer_of_a_known_encoder_is_refused_by_its_name(rest):
    tensors = pair(TO_Q, (16, 16)) | pair(f"text_encoder.{rest}", (4, 4))
    with pytest.raises(AdapterRefused, match=f"not in base model tiny, first text_encoder.{rest}"):
        paths(tensors)


# --- ComfyUI's own names come back as ComfyUI's own names ---


def native(prefix: str = "diffusion_model.") -> Adapter:
    tensors = pair(prefix + LDM_TO_Q, (16, 16))
    tensors |= pair(f"text_encoders.clip_l.transformer.{LAYER}", (4, 4))
    tensors |= pair(f"text_encoders.clip_g.transformer.{LAYER}", (4, 4))
    tensors[f"{prefix}{LDM_TO_Q}.alpha"] = np.asarray(1.0, np.float32)
    return parse(tensors, {}, "a")


@pytest.mark.proves("comfyui", "write", "names that ComfyUI's own loader lists")
def test_native_files_of_comfyui_keep_their_reader():
    adapter = native()
    assert adapter.format == "comfyui"
    tensors, _ = dump(adapter, concrete_format("same", adapter, SPEC), SPEC)
    ends = ("lora_down.weight", "lora_up.weight")
    names = (f"diffusion_model.{LDM_TO_Q}", f"text_encoders.clip_l.transformer.{LAYER}")
    names = (*names, f"text_encoders.clip_g.transformer.{LAYER}")
    wanted = {f"{name}.{end}" for name in names for end in ends}
    assert set(tensors) == wanted | {f"diffusion_model.{LDM_TO_Q}.alpha"}
    for before, after in zip(adapter.modules, parse(tensors, {}, "b").modules, strict=True):
        assert (before.path, before.alpha) == (after.path, after.alpha)
        assert np.array_equal(before.up, after.up)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_other_native_names_become_those_that_comfyui_reads(prefix):
    adapter = native(prefix)
    assert adapter.format == "comfyui"
    assert f"diffusion_model.{LDM_TO_Q}.lora_up.weight" in dump(adapter, "comfyui", SPEC)[0]


def test_the_encoder_of_sd_2_has_a_name_of_its_own():
    tensors = pair(f"text_encoder.{LAYER}", (4, 4))
    spec = identified(spec_from_config(CONFIGS["sd21"], name="sd21"))
    written, _ = dump(parse(tensors, {}, "a"), "comfyui", spec)
    assert {key.split(".")[1] for key in written} == {"clip_h"}


def test_the_oldest_diffusers_names_come_back_as_such():
    # ComfyUI reads these and kohya's, and none of diffusers' later names of attention layers.
    old = TO_Q.replace(".to_q", ".processor.to_q_lora")
    out = old.replace("to_q_lora", "to_out_lora")
    down, up = pair(TO_Q, (16, 16)).values()
    tensors = {f"{n}.{d}.weight": a for n in (old, out) for d, a in (("down", down), ("up", up))}
    adapter = resolve(parse(tensors, {}, "a"), SPEC)
    assert [m.path for m in adapter.modules] == [TO_Q, TO_Q.replace("to_q", "to_out.0")]
    written, _ = dump(adapter, concrete_format("same", adapter, SPEC), SPEC)
    assert set(written) == set(tensors)


# --- layers around layers ---


def wrapped(name: str, wrapper: str, place: int, *, is_flat: bool, times: int = 1) -> str:
    parts = name.split(".")
    parts[place:place] = [wrapper] * times
    if not is_flat:
        return ".".join(parts)
    return "_".join(("lora_unet", *parts[1:])) if parts[0] == "unet" else "_".join(parts)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("times", [1, 2])
def test_wrappers_in_an_adapter_are_passed_over(wrapper, times):
    for place in range(len(TO_Q.split(".")) + 1):
        name = wrapped(TO_Q, wrapper, place, is_flat=False, times=times)
        for ends in (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up")):
            assert paths(pair(name, (16, 16), ends=ends)) == [TO_Q], name
            assert paths(pair(f"base_model.model.{name}", (16, 16), ends=ends)) == [TO_Q], name
        if place:
            name = wrapped(TO_Q, wrapper, place, is_flat=True, times=times)
            assert paths(pair(name, (16, 16))) == [TO_Q], name
    ldm = f"lora_unet_{wrapper}_{flat(LDM_TO_Q)}"
    assert paths(pair(ldm, (16, 16))) == [TO_Q]
    assert paths(pair(f"lora_te1_{wrapper}_{flat(LAYER)}", (4, 4))) == [f"text_encoder.{LAYER}"]
    assert paths(pair(f"lycoris_{wrapper}_{flat(TO_Q[5:])}", (16, 16))) == [TO_Q]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "pattern",
    [
        "{0}.{1}",
        r"{0}\.{2}",
        r"^{0}\.{2}",
        r"^({0}\.conv_in|{0}\.{2})",
        r"{0}\.{0}\.{2}",
        r"{2}\.{0}",
        r"^(conv_in\.{0}|{2}\.{0})",
        r".*{0}\.down.*to_q",
    ],
)
def test_wrappers_in_a_configuration_are_passed_over(pattern, wrapper):
    pattern = pattern.format(wrapper, TO_Q[5:], re.escape(TO_Q[5:]))
    config = {"lora_alpha": 2, "alpha_pattern": {pattern: 6}}
    header = {"lora_adapter_metadata": json.dumps(config)}
    (module,) = parse(pair(TO_Q, (16, 16)), header, "a").modules
    assert module.alpha == 6


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_in_a_base_model_are_passed_over(wrapper):
    plain = unet_table(TINY)
    for place in (0, 1, -1):
        shapes = {
            wrapped(key, wrapper, min(place, key.count(".")), is_flat=False): shape
            for key, shape in plain.items()
        }
        assert spec_from_shapes(shapes, name="w").modules == SPEC.modules
        shapes = {f"model.diffusion_model.{k}": s for k, s in ldm_shapes(SPEC, wrapper).items()}
        assert spec_from_shapes(shapes, name="w").modules == SPEC.modules


def ldm_shapes(spec: BaseModelSpec, wrapper: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{wrapper}.{n}.weight": spec.modules[p].shape
        for p, n in ldm_paths(spec.component("unet")).items()
    }


# --- names that LDM uses twice, and names beside the blocks ---


def test_the_label_embedding_of_ldm_is_one_thing_or_the_other():
    sd2 = UNetTensors((8, 16), (1, 0), (0, 1), mid_depth=1, cross_attention_dim=6)
    shapes = unet_table(sd2) | {
        "class_embedding.linear_1.weight": (32, 12),
        "class_embedding.linear_2.weight": (32, 32),
    }
    unclip = spec_from_shapes(shapes, name="unclip")
    assert unclip.ldm_name("unet.class_embedding.linear_1") == "label_emb.0.0"
    assert SPEC.ldm_name("unet.add_embedding.linear_2") == "label_emb.0.2"
    for spec in (unclip, SPEC):  # a single file and a folder are one model
        names = {
            f"{n}.weight": spec.modules[p].shape
            for p, n in ldm_paths(spec.component("unet")).items()
        }
        assert spec_from_shapes(names, name="file").modules == spec.modules
    found = paths(pair("lora_unet_label_emb_0_0", (32, 12)), unclip)
    assert found == ["unet.class_embedding.linear_1"]


ROOTS = ["encoder_hid_proj", "class_embedding.linear_1", "position_net.linears.0"]


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("prefix", ["", "unet.", "base_model.model."])
def test_layers_beside_the_blocks_need_no_component(root, prefix):
    spec = spec_from_shapes(unet_table(TINY) | {f"{root}.weight": (6, 9)}, name="more")
    assert paths(pair(prefix + root, (6, 9), ends=("lora_A", "lora_B")), spec) == [f"unet.{root}"]


@pytest.mark.parametrize(("choice", "format"), [("kohya", "diffusers"), ("same", "kohya-ldm")])
def test_kohya_chooses_for_a_net_with_a_layer_that_ldm_does_not_know(choice, format):
    # Kolors: SDXL's layers, and one that projects the words of another text encoder.
    shapes = unet_table(TINY) | {"encoder_hid_proj.weight": (6, 9)}
    spec = spec_from_shapes(shapes, name="kolors")
    tensors = pair("unet.encoder_hid_proj", (6, 9)) | pair(TO_Q, (16, 16))
    adapter = Adapter(parse(tensors, {}, "a").modules, format)
    chosen = concrete_format(choice, adapter, spec)
    assert chosen == "kohya-diffusers"
    assert "lora_unet_encoder_hid_proj.lora_up.weight" in dump(adapter, chosen, spec)[0]
    some = Adapter(tuple(m for m in adapter.modules if m.path == TO_Q), format)
    assert concrete_format(choice, some, spec) == "kohya-ldm"
    for wanted in ("kohya-ldm", "comfyui"):  # who names a format gets that one or is refused
        with pytest.raises(AdapterRefused, match="encoder_hid_proj has no name in LDM; expected"):
            dump(adapter, concrete_format(wanted, adapter, spec), spec)


def test_modules_of_one_file_are_found_in_any_spelling():
    module = LoraModule(TO_Q, np.ones((2, 16), np.float32), np.ones((16, 2), np.float32))
    for format in ("kohya-ldm", "kohya-diffusers", "comfyui", "diffusers", "diffusers-old", "peft"):
        tensors, header = dump(Adapter((module,), format), format, SPEC)
        assert parse(tensors, header, "a").format == format
        assert paths(tensors) == [TO_Q]
