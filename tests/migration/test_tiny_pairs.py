"""Matching by weights on tiny nets whose layers are noisy copies of known ones; text encoders."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from unet_places import unet_place

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.placement import Placement
from prolora_jax.architectures.spec import ModuleSpec
from prolora_jax.architectures.unet.table import UNetTensors, unet_table
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.base_models.weight_source import Source
from prolora_jax.io.containers.tensors import write_tensors
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import migrate
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import UNVERIFIED_TEXT_ENCODER, Skip
from prolora_jax.verification.adapter import verify_adapter

SD = UNetTensors((8, 16, 24, 24), (1, 1, 1, 0), (0, 1, 1, 1), cross_attention_dim=12)
BK = replace(SD, layers_per_block=1)
TINY = replace(
    BK, block_out_channels=(8, 16, 24), down_depths=(1, 1, 1), up_depths=(1, 1, 1), mid=None
)
XL = UNetTensors(
    (8, 16, 24), (0, 2, 5), (5, 2, 0), mid_depth=5, cross_attention_dim=12, add_embedding_dim=10
)
SSD = replace(XL, down_depths=(0, 2, 3), mid="resnet", up_depths=((3, 3, 5), (2, 1, 1), 0))
KEPT = {3: (0, 2, 4), 1: (1,)}


def bk_origin(shift: int) -> Callable[[str], str]:
    """BK-SDM: the second layer of an up block is the teacher's third; tiny starts one later."""

    def origin(path: str) -> str:
        place = unet_place(path)
        if place is None or place.direction != "up_blocks":
            return path
        second = place.slot == 1 and place.kind in ("resnets", "attentions")
        place = replace(place, stage=place.stage + shift, slot=2 if second else place.slot)
        return place.path

    return origin


def ssd_origin(path: str) -> str:
    """SSD-1B: chosen blocks of shallower slots, and the second resnet in the middle."""
    place = unet_place(path)
    if place is None:
        return path
    if place.direction == "mid_block":
        return replace(place, slot=1).path
    depths = {"down_blocks": SSD.down_depths, "up_blocks": SSD.up_depths}[place.direction]
    depth = depths[place.stage]
    depth = depth[place.slot] if isinstance(depth, tuple) else depth
    source = {"down_blocks": XL.down_depths, "up_blocks": XL.up_depths}[place.direction]
    if place.block is None or depth == source[place.stage]:
        return path
    return replace(place, block=KEPT[depth][place.block]).path


def save(folder: Path, tensors: dict[str, np.ndarray]) -> BaseModel:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.parent.mkdir(parents=True)
    write_tensors(path, {key: tensor.astype(np.float32) for key, tensor in tensors.items()})
    return load_base_model(folder)


def make(folder: Path, source: UNetTensors, target: UNetTensors, origin, noise: float) -> BasePair:
    """A random source and a target that is made of its layers."""
    rng = np.random.default_rng(0)
    given = {k: rng.normal(size=shape) for k, shape in unet_table(source).items()}
    made = {}
    for key, shape in unet_table(target).items():
        path, _, leaf = f"unet.{key}".rpartition(".")
        weight = given[f"{origin(path)}.{leaf}".removeprefix("unet.")]
        assert weight.shape == shape, key
        made[key] = weight + noise * rng.normal(size=shape)
    return BasePair(save(folder / "source", given), save(folder / "target", made))


PAIRS = {
    "BK-base": (SD, BK, bk_origin(0)),
    "BK-small": (SD, replace(BK, mid=None), bk_origin(0)),
    "BK-tiny": (SD, TINY, bk_origin(1)),
    "SSD-1B": (XL, SSD, ssd_origin),
}


@pytest.mark.parametrize("score", ["cosine", "similarity"])
@pytest.mark.parametrize("name", PAIRS)
def test_planted_layers_are_found(
    tmp_path: Path, name: str, score: Literal["cosine", "similarity"]
):
    source, target, origin = PAIRS[name]
    pair = make(tmp_path, source, target, origin, noise=0.2)
    options = MigrationOptions(match_score=score, basis_rank="fraction=0.5")
    matching = pair.matching("block", options)
    assert matching.pairs == {path: origin(path) for path in pair.target.spec.modules}
    assert not any(a.weak for a in matching.alignments)


def test_deeper_target_takes_back_what_it_gave(tmp_path: Path):
    forth = make(tmp_path, XL, SSD, ssd_origin, noise=0.2)
    back = BasePair(forth.target, forth.source)
    origin = {ssd_origin(path): path for path in forth.target.spec.modules}
    matching = back.matching()
    assert dict(matching.pairs) == origin
    adapter = lora(forth.target, "to_q")
    migrated, report = migrate(adapter, forth.target, forth.source)
    assert len(migrated.modules) == len(adapter.modules)
    empty = {s.path for s in report.skipped if s.reason is Skip.NO_SOURCE_BLOCK}
    assert empty == {p for p in forth.source.spec.modules if p.endswith("to_q") and p not in origin}
    checked = verify_adapter(migrated, adapter, forth.target, forth.source, report.to_dict())
    assert checked.ok


def test_each_module_by_itself_may_share_a_source(tmp_path: Path):
    pair = make(tmp_path, XL, SSD, ssd_origin, noise=0.1)
    matching = pair.matching("module")
    assert matching.pairs == {path: ssd_origin(path) for path in pair.target.spec.modules}
    adapter = lora(pair.source, "to_k")
    migrated, report = migrate(
        adapter, pair.source, pair.target, MigrationOptions(match="module", basis_rank="rank=4")
    )
    assert verify_adapter(migrated, adapter, pair.source, pair.target, report.to_dict()).ok


def lora(model: BaseModel, role: str, *more: LoraModule) -> Adapter:
    rng = np.random.default_rng(1)
    modules = [
        LoraModule(
            path,
            rng.normal(size=(2, spec.shape[1])).astype(np.float32),
            rng.normal(size=(spec.shape[0], 2)).astype(np.float32),
            alpha=1.0,
        )
        for path, spec in model.spec.modules.items()
        if path.endswith(role)
    ]
    return Adapter((*modules, *more), "diffusers")


FC1 = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
TEXT = LoraModule(FC1, np.ones((2, 6), np.float32), np.ones((24, 2), np.float32), alpha=4.0)


def named(model: BaseModel, *encoders: str) -> BaseModel:
    return replace(model, spec=replace(model.spec, text_encoders=encoders))


def test_text_encoder_of_the_same_name_is_passed_through(tmp_path: Path):
    pair = make(tmp_path, SD, BK, bk_origin(0), noise=0.1)
    source, target = named(pair.source, "clip-l"), named(pair.target, "clip-l")
    adapter = lora(source, "to_q", TEXT)
    migrated, report = migrate(adapter, source, target)
    (row,) = (row for row in report.modules if row.path == FC1)
    assert (row.action, row.flags) == ("copy", (UNVERIFIED_TEXT_ENCODER,))
    after = migrated.module(FC1)
    np.testing.assert_allclose(
        after.scale * after.up @ after.down, TEXT.scale * TEXT.up @ TEXT.down, rtol=1e-6
    )
    told = report.to_dict()
    assert verify_adapter(migrated, adapter, source, target, told).ok
    other = verify_adapter(migrated, adapter, source, named(target, "openclip-h"), told)
    said = "report says copy, but no name, shape or weight leads there"
    assert said in str([m.problems for m in other.modules])


@pytest.mark.parametrize("names", [((), ()), (("clip-l",), ()), (("clip-l",), ("openclip-h",))])
def test_other_or_unknown_text_encoder_gets_nothing(tmp_path: Path, names):
    pair = make(tmp_path, SD, BK, bk_origin(0), noise=0.1)
    source, target = (named(m, *n) for m, n in zip((pair.source, pair.target), names, strict=True))
    _, report = migrate(lora(source, "to_q", TEXT), source, target)
    (skipped,) = (s for s in report.skipped if s.source_path == FC1)
    assert skipped.reason is Skip.TEXT_ENCODER


@pytest.mark.proves("text encoders", "migrate", "dense float64 path (`verify`)")
def test_text_encoder_on_disk_is_an_ordinary_module(tmp_path: Path):
    pair = make(tmp_path, SD, BK, bk_origin(0), noise=0.1)
    weight = np.random.default_rng(2).normal(size=(24, 6)).astype(np.float32)
    models = (with_text(pair.source, weight), with_text(pair.target, weight.astype(np.float16)))
    adapter = lora(models[0], "to_q", TEXT)
    _, report = migrate(adapter, *models)
    (row,) = (row for row in report.modules if row.path == FC1)
    # Equal after a cast to the narrower dtype.
    assert (row.action, row.flags) == ("copy", ("identical",))
    _, report = migrate(adapter, *models, MigrationOptions(identical="project"))
    (row,) = (row for row in report.modules if row.path == FC1)
    assert row.action == "project"


def with_text(model: BaseModel, text: np.ndarray) -> BaseModel:
    """`model` with one module of a text encoder."""

    class Held:
        keys: tuple[str, ...] = (FC1,)

        def shape(self, key: str) -> tuple[int, ...]:
            return text.shape

        def tensor(self, key: str) -> np.ndarray:
            return text

        def require_weight(self, key: str) -> None:
            return

    spec = replace(model.spec, modules={**model.spec.modules, FC1: ModuleSpec(FC1, text.shape)})
    source = Source(Held(), Placement(FC1, text.shape))
    return BaseModel(spec, model.location, {**model.sources, FC1: source})
