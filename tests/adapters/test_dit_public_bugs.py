"""What other programs got wrong with adapters of diffusion transformers, with the right outcome.

Each test says where the mistake was made public. Where diffusers is wrong to this day (0.42.1), the
test shows it and takes the map of rows, from its converters of checkpoints, as what is right.
"""

import numpy as np
import pytest
import torch
from diffusers.loaders import lora_pipeline
from transformer_nets import (
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

from prolora_jax.adapters.adapter import Adapter, delta
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.recognition import spec_from_shapes
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")


def named(
    given: dict[str, Pair], prefix: str, ends: tuple[str, str], alpha: float | None = None
) -> Tensors:
    """Tensors of pairs; names become flat behind a prefix with an underscore at its end."""
    tensors: Tensors = {}
    for name, pair in given.items():
        stem = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        tensors |= {stem + end: array for end, array in zip(ends, pair, strict=True)}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = np.array(alpha, np.float32)
    return tensors


def read(tensors: Tensors, spec: BaseModelSpec, *, structured: bool = False) -> Adapter:
    return resolve(parse(tensors, {}, "given.safetensors", structured=structured), spec)


def updates(adapter: Adapter) -> Tensors:
    return {m.path.removeprefix("transformer."): delta(adapter, m.path) for m in adapter.modules}


def assert_same(found: Tensors, wanted: Tensors, atol: float = 0.0) -> None:
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        np.testing.assert_allclose(found[name], update, rtol=1e-12, atol=atol, err_msg=name)


def some(family: str, *names: str, rank: int = 4, original: bool = False) -> dict[str, Pair]:
    known = original_shapes(family) if original else shapes(family)
    return pairs({name: known[name] for name in names}, rank)


# Alphas that were passed over: pictures of noise (diffusers 9134; Wan2GP 677, sglang 16935 and
# DiffSynth 1068 with alpha 8 at rank 64, which made an update eight times too strong).
@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "", "lora_unet_"])
@pytest.mark.parametrize(
    "ends", [PEFT, KOHYA, (".lora_A.default.weight", ".lora_B.default.weight")]
)
def test_an_alpha_counts_beside_every_pair(prefix: str, ends: tuple[str, str]) -> None:
    given = some("wan", "blocks.0.attn1.to_q", rank=64)
    found = read(named(given, prefix, ends, alpha=8), base("wan"))
    assert [m.scale for m in found.modules] == [0.125]
    assert_same(updates(found), dense(given, 0.125))


def test_a_name_that_no_layer_has_is_a_refusal_and_nothing_is_left_out() -> None:
    # ComfyUI 4347: names that were not found were passed over.
    given = some("flux", "x_embedder", "proj_out")
    given["transformer_blocks.7.attn.to_q"] = given["proj_out"]
    with pytest.raises(AdapterRefused, match=r"1/3 modules.*transformer_blocks_7_attn_to_q") as no:
        read(named(given, "lora_unet_", KOHYA, 4.0), base("flux"))
    assert no.value.code is Refusal.UNMATCHED_MODULES


# diffusers 13203: a file with the fused layer and its parts; the fused one was lost unseen.
class TestBothSpellingsOfOneLayer:
    stem = "layers.0.attention"

    def given(self) -> tuple[Tensors, Tensors]:
        fused = some("z", f"{self.stem}.qkv", original=True)
        (down, up) = fused[f"{self.stem}.qkv"]
        parts = {
            f"{self.stem}.to_{p}": (down, up[32 * i : 32 * i + 32]) for i, p in enumerate("qkv")
        }
        how = "diffusion_model.", PEFT, 2.0
        return named(fused, *how), named(parts, *how)

    def test_the_fused_layer_alone_is_not_lost(self) -> None:
        fused, parts = self.given()
        assert_same(updates(read(fused, base("z"))), updates(read(parts, base("z"))))
        assert len(read(fused, base("z")).modules) == 3

    def test_equal_ones_are_one(self) -> None:
        fused, parts = self.given()
        assert_same(updates(read(fused | parts, base("z"))), updates(read(parts, base("z"))))

    def test_other_numbers_are_refused(self) -> None:
        fused, parts = self.given()
        key = f"diffusion_model.{self.stem}.to_k.lora_B.weight"
        with pytest.raises(AdapterRefused, match=r"attention\.to_k: found twice") as refused:
            read(fused | parts | {key: 2 * parts[key]}, base("z"))
        assert refused.value.code is Refusal.DUPLICATE_MODULE

    def test_another_scale_is_another_update(self) -> None:
        fused, parts = self.given()
        key = f"diffusion_model.{self.stem}.to_k.alpha"
        with pytest.raises(AdapterRefused, match=r"attention\.to_k: found twice"):
            read(fused | parts | {key: np.array(4.0, np.float32)}, base("z"))


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_blocks_with_holes_are_the_blocks_that_they_are(prefix: str) -> None:
    # forge-classic 1431, 1453: depth guessed from blocks that follow one another, `blocks.1` found
    # in `blocks.11`, flat names not moved, and what had been moved once moved again.
    net = built("wan", num_layers=13)
    spec = spec_from_shapes(
        {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}, name="deep"
    )
    width = shapes("wan")["blocks.0.attn1.to_q"]
    blocks = (1, 2, 5, 11, 12)
    given = pairs({f"blocks.{i}.self_attn.q": width for i in blocks})
    found = read(named(given, prefix, KOHYA, 4.0), spec)
    wanted = {
        f"blocks.{i}.attn1.to_q": u for i, u in zip(blocks, dense(given).values(), strict=True)
    }
    assert_same(updates(found), wanted)
    assert_same(updates(resolve(found, spec)), wanted)


@pytest.mark.proves("Flux.1, XLabs", "read", "diffusers loads and fuses")
@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_processors_have_layers_of_single_blocks_too(prefix: str) -> None:
    # diffusers 9959: keys of single blocks were passed over.
    net = built("flux", num_layers=19, num_single_layers=38)
    spec = spec_from_shapes(
        {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}, name="deep"
    )
    h = 32
    layers = {
        f"double_blocks.{i}.processor.{name}_lora{number}": (rows, h)
        for i in range(19)
        for number in (1, 2)
        for name, rows in (("qkv", 3 * h), ("proj", h))
    }
    layers |= {f"single_blocks.{i}.processor.qkv_lora": (3 * h, h) for i in range(38)}
    layers |= {f"single_blocks.{i}.processor.proj_lora": (h, 5 * h) for i in range(38)}
    tensors = named(pairs(layers), prefix, (".down.weight", ".up.weight"))
    found = updates(read(tensors, spec))
    assert len(found) == 304
    assert not any("proj_mlp" in name for name in found)
    wanted = added_in_diffusers("flux", net.double(), tensors)
    assert_same(found, wanted, atol=1e-12)


def test_blocks_are_counted_by_the_base_model() -> None:
    # diffusers PR 13030: the largest model's 8 and 48 blocks were expected of every one.
    net = built("flux2", num_layers=2, num_single_layers=5)
    spec = spec_from_shapes(
        {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}, name="klein"
    )
    given = pairs({f"single_blocks.{i}.linear2": (32, 128) for i in range(5)})
    assert len(read(named(given, "lora_unet_", KOHYA, 4.0), spec).modules) == 5


def lokr(stem: str, rows: int, width: int) -> Tensors:
    rng = np.random.default_rng(1)
    w1, w2 = (rng.standard_normal(s).astype("f4") for s in ((2, 2), (rows // 2, width // 2)))
    return {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2, f"{stem}.alpha": np.array(3.0, "f4")}


@pytest.mark.proves("Flux.1, LoKr on a fused layer", "refused", "keys of its own writer")
def test_lokr_of_a_fused_layer_is_refused_by_name() -> None:
    # diffusers 13137: a Kronecker product of fused rows is no Kronecker product of a part's.
    tensors = lokr("lycoris_double_blocks_0_img_attn_qkv", 96, 32)
    with pytest.raises(AdapterRefused, match="LoKr.*to_q, .*to_k, .*to_v") as refused:
        read(tensors, base("flux"), structured=True)
    assert refused.value.code is Refusal.UNSUPPORTED_ALGORITHM


def test_the_alpha_of_a_full_lokr_is_no_scale() -> None:
    # ComfyUI 15114, on a layer that is whole.
    from prolora_jax.adapters.algorithms.cutting import FactorRank
    from prolora_jax.adapters.algorithms.factoring import factored

    tensors = lokr("lycoris_transformer_blocks_0_attn_to_q", 32, 32)
    found = read(tensors, base("flux"), structured=True)
    made = factored(found, base("flux"), None, FactorRank(energy=1.0, most=32))
    w1, w2 = (tensors[f"lycoris_transformer_blocks_0_attn_to_q.lokr_{n}"] for n in ("w1", "w2"))
    np.testing.assert_allclose(
        delta(made, "transformer.transformer_blocks.0.attn.to_q"), np.kron(w1, w2), atol=1e-5
    )


def test_loha_and_a_full_difference_are_cut_by_rows() -> None:
    stem, rows, width = "lycoris_double_blocks_0_img_attn_qkv", 96, 32
    rng = np.random.default_rng(1)
    sizes = {"w1_a": (rows, 2), "w1_b": (2, width), "w2_a": (rows, 2), "w2_b": (2, width)}
    loha = {f"{stem}.hada_{n}": rng.standard_normal(s).astype("f4") for n, s in sizes.items()}
    found = read(loha, base("flux"), structured=True).structured
    assert [m.path.rpartition(".")[2] for m in found] == ["to_q", "to_k", "to_v"]
    for i, module in enumerate(found):
        for name in ("hada_w1_a", "hada_w2_a"):
            part = loha[f"{stem}.{name}"][32 * i : 32 * i + 32]
            np.testing.assert_array_equal(module.parts[name], part)
        assert module.parts["hada_w1_b"] is loha[f"{stem}.hada_w1_b"]
    diff = {f"{stem}.diff": rng.standard_normal((rows, width)).astype("f4")}
    found = read(diff, base("flux"), structured=True).structured
    np.testing.assert_array_equal(
        np.concatenate([m.parts["diff"] for m in found]), diff[f"{stem}.diff"]
    )


def swapped_by_diffusers(family: str) -> tuple[Tensors, Tensors, Tensors]:
    """A pair of the last adaptive norm: as ours reads it, diffusers, and the map of rows."""
    # Some module of a block, by which the converter knows the naming.
    block = "double_blocks.0.img_attn" + {"flux2": ".proj", "hv": "_qkv"}[family]
    given = some(family, "final_layer.adaLN_modulation.1", block, original=True)
    tensors = named(given, "diffusion_model.", PEFT)
    loaded = added_in_diffusers(family, built(family).double(), tensors)
    return updates(read(tensors, base(family))), loaded, cut_by_map(family, dense(given))


def test_halves_of_the_last_norm_are_exchanged_where_diffusers_forgets_it() -> None:
    found, loaded, wanted = swapped_by_diffusers("flux2")
    assert_same(found, wanted)
    assert not np.allclose(loaded["norm_out.linear"], wanted["norm_out.linear"])


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")  # one name ends others
def test_halves_of_the_rank_are_left_alone_where_diffusers_exchanges_them() -> None:
    found, loaded, wanted = swapped_by_diffusers("hv")
    assert_same(found, wanted)
    assert not np.allclose(loaded["norm_out.linear"], wanted["norm_out.linear"])


def test_onetrainer_s_names_are_all_found_where_diffusers_makes_two_of_one_name() -> None:
    given = pairs(shapes("flux"))
    tensors = named(given, "lora_transformer_", KOHYA, 4.0)
    assert_same(updates(read(tensors, base("flux"))), dense(given))
    loaded = lora_pipeline.FluxLoraLoaderMixin.lora_state_dict(
        {key: torch.from_numpy(array) for key, array in tensors.items()}
    )
    modules = {key.partition(".lora")[0].removeprefix("transformer.") for key in loaded}
    assert modules - given.keys() >= {"transformer_blocks.0", "single_transformer_blocks.0"}
    assert len(modules & given.keys()) < len(given)


@pytest.mark.proves("Flux.1, control LoRA", "refused", "keys of its own writer")
def test_a_control_lora_is_refused_for_the_norms_that_it_replaces() -> None:
    given = some("flux", "double_blocks.0.img_attn.qkv", original=True)
    tensors = named(given, "", PEFT)
    tensors["double_blocks.0.img_attn.qkv.lora_B.bias"] = np.ones(96, "f4")
    tensors["double_blocks.0.img_attn.norm.query_norm.scale"] = np.ones(16, "f4")
    with pytest.raises(AdapterRefused, match="control-LoRA.*query_norm.scale") as refused:
        read(tensors, base("flux"))
    assert refused.value.code is Refusal.UNSUPPORTED_ALGORITHM


@pytest.mark.parametrize("end", ["self_attn.q.diff_b", "norm3.diff", "norm3.diff_b"])
def test_tensors_beside_the_pairs_are_left_out_only_where_they_are_zero(end: str) -> None:
    given = some("wan", "blocks.0.self_attn.q", original=True)
    tensors = named(given, "diffusion_model.", KOHYA, 4.0)
    key = f"diffusion_model.blocks.0.{end}"
    found = read(tensors | {key: np.zeros(24, "f4")}, base("wan"))
    assert_same(updates(found), {"blocks.0.attn1.to_q": next(iter(dense(given).values()))})
    assert not found.companions
    with pytest.raises(AdapterRefused, match=f"{end}: found a tensor that changes") as refused:
        read(tensors | {key: np.ones(24, "f4")}, base("wan"))
    assert refused.value.code is Refusal.UNSUPPORTED_ALGORITHM


def test_rows_that_a_fused_layer_cannot_have_are_refused_with_both_numbers() -> None:
    given = pairs({"double_blocks.0.img_attn.qkv": (95, 32)})
    with pytest.raises(AdapterRefused, match="found 95 rows; expected 96") as refused:
        read(named(given, "lora_unet_", KOHYA), base("flux"))
    assert refused.value.code is Refusal.SHAPE_MISMATCH


def test_a_truncated_export_is_read() -> None:
    name = "transformer_blocks.0.attn.to_q"
    given = some("flux2", name)
    cut = {name.removeprefix("tran"): pair for name, pair in given.items()}
    assert_same(updates(read(named(cut, "transformer.", PEFT), base("flux2"))), dense(given))


def test_the_map_has_halves_exchanged_where_the_tests_say_so() -> None:
    swapped = {
        (family, name)
        for family in ("flux", "flux2", "hv", "sd3", "wan", "z", "ltx")
        for name, (_, segments) in row_map(family).items()
        if segments is not None and len(segments) == 2
    }
    assert swapped == {(f, "norm_out.linear") for f in ("flux", "flux2", "hv", "sd3")} | {
        ("sd3", "transformer_blocks.1.norm1_context.linear")
    }
