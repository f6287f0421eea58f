"""Names and rows of diffusion transformers, against tables that diffusers' own classes gave."""

import numpy as np
import pytest
from dit_tables import BASES, MAPPED, TINY, header, modules, places, table, tiny

from prolora_jax.architectures.dit.families import dit_family
from prolora_jax.architectures.dit.originals import fused_rows, originals
from prolora_jax.architectures.placement import placements
from prolora_jax.architectures.recognition import spec_from_shapes
from prolora_jax.errors import BaseModelError

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "net.", "model.", "")


def found(shapes, prefix=""):
    """Shape by module path, as a file with these weights is read."""
    return {path: place.shape for path, place in placements(header(shapes, prefix)).items()}


def with_component(shapes):
    return {f"transformer.{name}": shape for name, shape in modules(shapes).items()}


@pytest.mark.parametrize("base", BASES)
def test_diffusers_names_are_the_modules(base):
    assert found(table(base)) == with_component(table(base))


@pytest.mark.parametrize("base", MAPPED)
def test_original_names_are_the_same_modules(base):
    assert found(table(base, "original")) == with_component(table(base))


@pytest.mark.parametrize("base", MAPPED)
def test_every_row_of_every_original_weight_is_read_once(base):
    stored = modules(table(base, "original"))
    read = {name: np.zeros(shape[0], dtype=int) for name, shape in stored.items()}
    for place in placements(header(stored)).values():
        rows = read[place.key.removesuffix(".weight")]
        for first, end in place.segments or ((0, len(rows)),):
            rows[first:end] += 1
    assert all((rows == 1).all() for rows in read.values())


@pytest.mark.parametrize("base", MAPPED)
def test_rows_are_those_that_diffusers_takes(base):
    expected = {
        f"transformer.{name}": where
        for name, *where in places(base)
        if len(table(base)[name]) in {2, 4}
    }
    assert {path: [*part] for path, part in originals(with_component(table(base))).items()} == {
        path: where for path, where in expected.items()
    }
    read = placements(header(table(base, "original")))
    assert {p: [q.key.removesuffix(".weight"), q.segments] for p, q in read.items()} == expected


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_prefixes(prefix, naming):
    shapes = table("flux2_klein_4b", naming)
    assert found(shapes, prefix) == with_component(table("flux2_klein_4b"))


def test_what_stands_beside_a_transformer_is_not_in_it():
    shapes = header(table("cosmos_predict2_2b", "original"), "net.")
    shapes |= {"net.llm_adapter.blocks.0.cross_attn.q_proj.weight": (8, 8)}
    shapes |= {"vae.encoder.conv_in.weight": (8, 3, 3, 3)}
    placed = placements(shapes)
    assert {path: place.shape for path, place in placed.items()} == with_component(
        table("cosmos_predict2_2b")
    )


def test_two_experts_are_two_components():
    shapes = table("wan21_t2v_1_3b")
    both = header(shapes, "transformer.") | header(shapes, "transformer_2.")
    assert {path: place.shape for path, place in placements(both).items()} == {
        f"{component}.{name}": shape
        for component in ("transformer", "transformer_2")
        for name, shape in modules(shapes).items()
    }


@pytest.mark.parametrize("name", TINY)
def test_families_do_not_depend_on_sizes(name):
    shapes = tiny(name)
    weights = {k: s for k, s in shapes.items() if k.endswith(".weight") and len(s) in {2, 4}}
    placed = placements(shapes)
    assert {place.key: place.shape for place in placed.values()} == weights


def test_unets_and_language_models_are_of_no_family():
    assert dit_family(["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]) is None
    assert dit_family(["model.layers.0.self_attn.q_proj", "layers.0.mlp.up_proj"]) is None


def test_fused_rows_follow_from_the_width():
    assert fused_rows(3, (3840, 2304)) == ((0, 2304), (2304, 3072), (3072, 3840))
    assert fused_rows(4, (21, 3)) == ((0, 3), (3, 6), (6, 9), (9, 21))
    assert fused_rows(2, (8, 3)) == ((0, 4), (4, 8))
    assert fused_rows(3, (10, 3)) is None
    assert fused_rows(4, (9, 3)) is None


def test_bad_tables_are_refused_by_what_is_wrong():
    flux = header(table("flux1_dev", "original"))
    odd = flux | {"double_blocks.3.img_attn.qkv.weight": (9217, 3072)}
    with pytest.raises(BaseModelError, match=r"f: double_blocks\.3.*\(9217, 3072\).*to_q, to_k"):
        spec_from_shapes(odd, name="f")
    hole = {key: shape for key, shape in flux.items() if ".7." not in key}
    with pytest.raises(BaseModelError, match=r"transformer_blocks\.7: found no such block, but"):
        spec_from_shapes(hole, name="f")
    image = {key.replace("img_attn.qkv", "img_attn_q"): shape for key, shape in flux.items()}
    with pytest.raises(BaseModelError, match=r"double_blocks; expected one of transformer_blocks"):
        spec_from_shapes(image, name="f")
    with pytest.raises(BaseModelError, match="of no known family .*; give it in diffusers' naming"):
        spec_from_shapes({"transformer_blocks.0.attn.to_x.weight": (4, 4)}, name="f")


def test_a_t5_is_no_clip():
    """Pipelines with both call them text_encoder and text_encoder_2."""
    shapes = header(table("flux2_klein_4b"), "transformer.")
    layer = "encoder.block.0.layer.0.SelfAttention.q.weight"
    shapes |= {f"text_encoder_2.{layer}": (8, 8), "text_encoder_2.shared.weight": (9, 8)}
    clip = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    placed = placements(shapes | {f"{clip}.weight": (8, 8)})
    assert {*placed} - {*with_component(table("flux2_klein_4b"))} == {clip}
