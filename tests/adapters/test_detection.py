"""Base detection on real-size name tables: evidence, ambiguity said, wrong bases refused."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from toy_pair import make_files

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.detection import check_base, detect
from prolora_jax.adapters.formats.header_strings import for_target
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.identify import identified, published_spec
from prolora_jax.architectures.recognition import spec_from_shapes
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.single import migrate
from prolora_jax.plans.options import BadOption, MigrationOptions


def module(path: str, shape: tuple[int, ...]) -> LoraModule:
    up = np.broadcast_to(np.float32(1), (shape[0], 1, *(1 for _ in shape[2:])))
    return LoraModule(path, np.broadcast_to(np.float32(1), (1, *shape[1:])), up)


def lora(
    name: str,
    keep: Callable[[ModuleSpec], bool] = lambda m: m.kind_is("attn"),
    metadata: dict[str, str] | None = None,
) -> Adapter:
    """An adapter of rank 1 for the chosen modules of a published model."""
    modules = published_spec(name).modules.values()
    chosen = tuple(module(m.path, m.shape) for m in modules if keep(m))
    return Adapter(chosen, "diffusers", metadata=metadata or {}, origin="x.safetensors")


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_that_trains_all_its_modules_is_recognised(name: str):
    found = detect(lora(name))
    assert (found.verdict, found.architectures) == ("found", (name,))
    assert found.candidates[0].architecture == name
    assert found.candidates[0].complete


def test_flat_names_of_both_block_namings():
    spec = published_spec("ssd-1b")
    given = lora("ssd-1b")
    for flat_name in (spec.ldm_flat, spec.diffusers_flat):
        modules = tuple(replace(m, path=f"lora_unet_{flat_name(m.path)}") for m in given.modules)
        assert detect(replace(given, modules=modules)).architectures == ("ssd-1b",)


def some_blocks(m: ModuleSpec) -> bool:
    return m.path.startswith("unet.up_blocks.0.attentions.1.") and ".0.attn1." in m.path


def test_some_blocks_of_sdxl_are_ambiguous():
    found = detect(lora("sdxl", some_blocks, {"ss_base_model_version": "sdxl_base_v1-0"}))
    assert found.verdict == "ambiguous-base"
    assert {"sdxl", "ssd-1b", "vega", "koala-1b"} <= set(found.architectures)
    assert "sd15" not in found.architectures
    lines = "\n".join(found.evidence)
    assert "ss_base_model_version = sdxl_base_v1-0 (a hint)" in lines
    assert "no absent module decides" in lines


def test_the_header_is_a_hint_and_decides_nothing():
    told = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    assert detect(replace(lora("ssd-1b"), metadata=told)).architectures == ("ssd-1b",)


def test_all_of_an_ssd_1b_adapter_fits_sdxl():
    found = detect(lora("ssd-1b"))
    shares = {c.architecture: c.share for c in found.candidates}
    assert shares["sdxl"] == 1.0
    assert any("absent modules" in line for line in found.evidence)


def test_unknown_names_are_unknown():
    other = Adapter((module("lora_unet_double_blocks_0_img_attn_qkv", (8, 8)),), "kohya-ldm")
    assert detect(other).verdict == "unknown"


@pytest.mark.parametrize(
    ("path", "width", "expected"),
    [
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 1024, ("sd21",)),
        ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj", 1280, None),
    ],
)
def test_text_encoders_alone(path: str, width: int, expected: tuple[str, ...] | None):
    found = detect(Adapter((module(path, (width, width)),), "diffusers"))
    assert found.verdict == "ambiguous-base"
    assert "only text encoders" in found.evidence[-1]
    assert expected is None or found.architectures == expected


@pytest.mark.parametrize(
    ("adapter", "source"), [("sd15", "sdxl"), ("ssd-1b", "sdxl"), ("bk-sdm-base", "sd15")]
)
def test_wrong_base_is_refused_and_overridden(adapter: str, source: str):
    spec = published_spec(source)
    message = rf"x.safetensors: found an adapter for {adapter} .*expected one for {source}"
    with pytest.raises(AdapterRefused, match=message) as caught:
        check_base(lora(adapter), spec)
    assert caught.value.code is Refusal.WRONG_BASE
    assert check_base(lora(adapter), spec, source) == (f"assumed-base: {source}",)
    with pytest.raises(AdapterRefused, match=f"--assume-base {adapter}; expected one for {source}"):
        check_base(lora(adapter), spec, adapter)


def test_what_a_migration_wrote_is_believed():
    """Moved from SSD-1B to SDXL's first blocks, an adapter has the modules of SSD-1B."""
    spec = published_spec("sdxl")
    moved = replace(lora("ssd-1b"), metadata={"prolora": '{"architecture": "sdxl"}'})
    assert check_base(moved, spec) == ()
    for text in ('{"architecture": null}', '{"architecture": "vega"}', "[]", "{"):
        with pytest.raises(AdapterRefused, match="expected one for sdxl"):
            check_base(replace(moved, metadata={"prolora": text}), spec)


def test_a_migration_writes_what_it_moved_to(tmp_path):
    files = make_files(tmp_path)
    source, target = load_base_model(files.source), load_base_model(files.target)
    named = replace(target, spec=replace(target.spec, family="ssd-1b"))
    options = MigrationOptions(method="copy")
    moved, _ = migrate(load_adapter(files.adapter), source, named, options)
    assert json.loads(moved.metadata["prolora"])["architecture"] == "ssd-1b"


def test_ambiguity_and_unknown_sources_pass():
    spec = published_spec("sdxl")
    (flag,) = check_base(lora("sdxl", some_blocks), spec)
    assert flag.startswith("ambiguous-base: ")
    assert "ssd-1b" in flag
    assert check_base(lora("sdxl"), spec) == ()
    assert check_base(lora("sd15"), replace(spec, family=None)) == ()


def test_an_unknown_id_is_not_assumed():
    with pytest.raises(BadOption, match="--assume-base sdxxl: expected sd15 "):
        MigrationOptions(assume_base="sdxxl")


# Layers in which a model differs from its family, as tests/architectures/test_family.py has them.
LCM = {"time_embedding.cond_proj.weight": (320, 256)}
NINE = {"conv_in.weight": (320, 9, 3, 3)}
CLASSES = {"class_embedding.linear_1.weight": (1280, 1536)}
KOLORS = {
    "encoder_hid_proj.weight": (2048, 4096),
    "add_embedding.linear_1.weight": (1280, 5632),
}


def changed(family: str, tensors: dict[str, tuple[int, ...]], name: str = "mine") -> BaseModelSpec:
    """A base model that has these tensors otherwise than its family."""
    return identified(spec_from_shapes(unet_table(CONFIGS[family]) | tensors, name=name))


def whole(spec: BaseModelSpec, keep: Callable[[ModuleSpec], bool] = lambda m: True) -> Adapter:
    chosen = (module(m.path, m.shape) for m in spec.modules.values() if keep(m))
    return Adapter(tuple(chosen), "diffusers", origin="x.safetensors")


def kohya(adapter: Adapter) -> Adapter:
    def name(path: str) -> str:
        return "lora_unet_" + path.removeprefix("unet.").replace(".", "_")

    return replace(adapter, modules=tuple(replace(m, path=name(m.path)) for m in adapter.modules))


@pytest.mark.parametrize("tensors", [LCM, NINE, KOLORS, LCM | NINE], ids=str)
def test_a_model_beside_sdxl_takes_and_refuses_what_sdxl_does(tensors):
    spec = changed("sdxl", tensors, "a-child")
    assert check_base(lora("sdxl"), spec) == check_base(lora("sdxl"), published_spec("sdxl")) == ()
    assert resolve(lora("sdxl"), spec).modules
    apart = "expected one for sdxl, which base model a-child is, apart from: "
    for other in ("ssd-1b", "vega", "koala-1b", "sd15"):
        with pytest.raises(AdapterRefused, match=f"an adapter for {other} .*{apart}") as caught:
            check_base(lora(other), spec)
        assert caught.value.code is Refusal.WRONG_BASE
    assert check_base(lora("ssd-1b"), spec, "sdxl") == ("assumed-base: sdxl",)
    with pytest.raises(AdapterRefused, match=f"--assume-base ssd-1b; {apart}"):
        check_base(lora("ssd-1b"), spec, "ssd-1b")


def test_the_differences_stand_in_the_message():
    with pytest.raises(AdapterRefused) as caught:
        check_base(lora("ssd-1b"), changed("sdxl", NINE | LCM))
    assert (
        "apart from: extra unet.time_embedding.cond_proj; "
        "unet.conv_in takes 9 channels, not 4. Give the base model" in str(caught.value)
    )


def test_a_wider_first_convolution_is_judged_by_its_shape():
    whole_sdxl, inpainting = whole(published_spec("sdxl")), changed("sdxl", NINE)
    assert check_base(whole_sdxl, inpainting) == ()
    with pytest.raises(AdapterRefused, match=r"unet.conv_in: found down \(1, 4, 3, 3\)") as caught:
        resolve(whole_sdxl, inpainting)
    assert caught.value.code is Refusal.SHAPE_MISMATCH
    assert resolve(whole(inpainting), inpainting).modules


@pytest.mark.parametrize(
    ("family", "tensors"),
    [("sdxl", NINE), ("ssd-1b", LCM), ("sd15", NINE), ("sd21", CLASSES), ("sdxl", KOLORS)],
    ids=str,
)
@pytest.mark.parametrize("spelling", [lambda adapter: adapter, kohya], ids=["dotted", "flat"])
def test_what_only_the_changed_model_has_does_not_hide_the_family(family, tensors, spelling):
    spec = changed(family, tensors)
    adapter = spelling(whole(spec))
    found = detect(adapter)
    assert (found.verdict, found.architectures) == ("found", (family,))
    (line,) = (line for line in found.evidence if "as in no published model" in line)
    assert any(key.partition(".")[0] in line for key in tensors)
    assert ("and 1 more" in line) == (len(tensors) == 2)
    assert check_base(adapter, spec) == check_base(adapter, published_spec(family)) == ()
    other = "sdxl" if family == "ssd-1b" else "ssd-1b"
    with pytest.raises(AdapterRefused, match=f"an adapter for {family} "):
        check_base(adapter, changed(other, tensors))


def test_layers_between_those_of_a_block_do_not_hide_the_family():
    path = "unet.mid_block.attentions.0.transformer_blocks.0.fuser.linear"
    given = lora("sd15")
    adapter = replace(given, modules=(*given.modules, module(path, (1280, 768))))
    assert detect(adapter).architectures == ("sd15",)
    assert detect(kohya(adapter)).architectures == ("sd15",)


def test_other_layers_that_no_model_has_leave_it_unknown():
    given = lora("sdxl")
    for path in ("unet.down_blocks.9.resnets.0.conv1", "unet.conv_into", "unet.mid_block.fuse"):
        adapter = replace(given, modules=(*given.modules, module(path, (8, 8))))
        assert detect(adapter).verdict == "unknown"
    only = Adapter((module("unet.time_embedding.cond_proj", (320, 256)),), "diffusers")
    assert (detect(only).verdict, detect(only).architectures) == ("unknown", ())


def test_header_strings_are_those_of_the_family():
    told = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "x", "ss_v2": "True"}
    for tensors in (LCM, NINE):
        after = for_target(told, changed("ssd-1b", tensors), merged_from=["style"])
        assert after == for_target(told, published_spec("ssd-1b"), merged_from=["style"])
        assert after["ss_base_model_version"] == "sdxl_base_v1-0"


def test_what_a_migration_to_a_family_wrote_is_believed():
    moved = replace(lora("ssd-1b"), metadata={"prolora": '{"architecture": "sdxl"}'})
    assert check_base(moved, changed("sdxl", LCM)) == ()
    with pytest.raises(AdapterRefused, match="expected one for vega"):
        check_base(moved, changed("vega", LCM))
