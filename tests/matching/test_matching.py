"""Matching of modules: real-size name tables, made-up scores that plant a known correspondence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from unet_places import unet_place

from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.stacks import BLOCK, split_block
from prolora_jax.matching.matching import match_modules, same_structure

SLOT = "unet.down_blocks.1.attentions.0"


def spec(name: str, **blocks: int) -> BaseModelSpec:
    """A base with `blocks[slot]` transformer blocks of two layers per slot, and one conv."""
    modules = {"unet.conv_in": ModuleSpec("unet.conv_in", (8, 4, 3, 3))}
    for slot, count in blocks.items():
        for index in range(count):
            for role in ("attn1.to_q", "ff.net.2"):
                path = f"unet.{slot}.transformer_blocks.{index}.{role}"
                modules[path] = ModuleSpec(path, (8, 8))
    return BaseModelSpec(name, modules)


def known(name: str) -> BaseModelSpec:
    return spec_from_config(CONFIGS[name], name=name)


def no_evidence(sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
    raise AssertionError("asked for evidence where shapes and order leave no choice")


def by_score(score: Callable[[str, str], float]):
    """Evidence with a made-up score for each pair of (source path, target path)."""

    def evidence(sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        return np.array([[(score(s, t), 1.0, 1.0) for t in targets] for s in sources])

    return evidence


def planted(origin: Mapping[str, str], seed: int = 0):
    """High scores where a target module was made from a source module, low ones elsewhere."""
    rng = np.random.default_rng(seed)

    def score(source_path: str, path: str) -> float:
        return (0.9 if origin.get(path) == source_path else 0.3) + rng.uniform(-0.05, 0.05)

    return by_score(score)


def block_scores(table: list[list[float]]):
    """One score per pair of (source block, target block)."""

    def score(source_path: str, path: str) -> float:
        i, j = split_block(source_path), split_block(path)
        assert i is not None
        assert j is not None
        return table[i[1]][j[1]]

    return by_score(score)


def moved(path: str, stages: Mapping[str, str], slots: Mapping[int, int], blocks) -> str:
    """Where a target module came from: stage by path, slot by index, block by (depth, index)."""
    place = unet_place(path)
    if place is None:
        return path
    slot = slots.get(place.slot, place.slot) if place.kind in ("resnets", "attentions") else 0
    place = replace(place, slot=slot)
    head = stages.get(place.stage_path, place.stage_path)
    head = f"{head}.{place.kind}.{place.slot}"
    if place.block is None:
        return f"{head}.{place.role}"
    return f"{head}{BLOCK}{blocks(path, place.block)}.{place.role}"


def depth_of(base: BaseModelSpec, slot: str) -> int:
    return len({s[1] for p in base.modules if (s := split_block(p)) is not None and s[0] == slot})


def test_equal_structure_keeps_names_and_asks_for_no_scores():
    source = spec("a", **{"down_blocks.1.attentions.0": 2})
    matching = match_modules(source, source, no_evidence)
    assert matching.pairs == {path: path for path in source.modules}
    assert matching.matched_by == "name"
    assert same_structure(source, source)
    again = match_modules(source, source, no_evidence, "block")
    assert again.pairs == matching.pairs
    assert again.matched_by == "block"


@pytest.mark.parametrize("kept", [(0, 1), (1, 3), (2, 3)])
def test_shallower_target_gets_the_blocks_with_the_best_scores(kept: tuple[int, int]):
    source = spec("a", **{"down_blocks.1.attentions.0": 4, "mid_block.attentions.0": 1})
    target = spec("b", **{"down_blocks.1.attentions.0": 2})
    scores = [[0.9 if kept[j] == i else 0.1 for j in range(2)] for i in range(4)]
    matching = match_modules(source, target, block_scores(scores))
    for j, i in enumerate(kept):
        target_path = f"{SLOT}.transformer_blocks.{j}.attn1.to_q"
        assert matching.pairs[target_path] == f"{SLOT}.transformer_blocks.{i}.attn1.to_q"
    assert set(matching.pairs) == set(target.modules)
    assert matching.alignments[0].pairs == tuple((i, j) for j, i in enumerate(kept))
    assert matching.alignments[0].margin == pytest.approx(0.8)


def test_deeper_target_leaves_blocks_without_source():
    source = spec("a", **{"down_blocks.1.attentions.0": 1})
    target = spec("b", **{"down_blocks.1.attentions.0": 3})
    matching = match_modules(source, target, block_scores([[0.1, 0.2, 0.9]]))
    found = [split for path in matching.pairs if (split := split_block(path)) is not None]
    assert {index for _, index, _ in found} == {2}


def test_runner_up_that_is_almost_as_good_is_weak():
    source = spec("a", **{"down_blocks.1.attentions.0": 2})
    target = spec("b", **{"down_blocks.1.attentions.0": 1})
    close = match_modules(source, target, block_scores([[0.50], [0.52]]))
    clear = match_modules(source, target, block_scores([[0.10], [0.52]]))
    assert [a.slot for a in close.alignments if a.weak] == [SLOT]
    assert close.is_weak(f"{SLOT}.transformer_blocks.0.attn1.to_q")
    assert not close.is_weak(f"{SLOT}.proj_in")
    assert not any(a.weak for a in clear.alignments)


def test_modules_of_other_shape_are_not_paired():
    source = spec("a")
    target = BaseModelSpec("b", {"unet.conv_in": ModuleSpec("unet.conv_in", (8, 9, 3, 3))})
    assert not match_modules(source, target, no_evidence).pairs


# Furusu's estimate for SSD-1B keeps 0, 1, 2, 6 of ten (formats.md 3.3); the others are made up.
KEPT = {(10, 4): (0, 1, 2, 6), (2, 1): (1,), (10, 2): (3, 8), (4, 2): (1, 3)}


@pytest.mark.parametrize(
    ("source", "target"), [("sdxl", "ssd-1b"), ("sdxl", "vega"), ("ssd-1b", "vega")]
)
def test_segmind_blocks_are_found(source: str, target: str):
    s, t = known(source), known(target)

    def block(path: str, index: int) -> int:
        split = split_block(path)
        assert split is not None
        depths = depth_of(s, split[0]), depth_of(t, split[0])
        return index if depths[0] == depths[1] else KEPT.get(depths, (6, 9))[index]

    # The middle resnet that stayed is the second one.
    single = len(t.modules) < len(s.modules) and "unet.mid_block.resnets.1.conv1" in s.modules
    origin = {
        path: path.replace("mid_block.resnets.0", "mid_block.resnets.1")
        if single and path.startswith("unet.mid_block")
        else moved(path, {}, {}, block)
        for path in t.modules
    }
    matching = match_modules(s, t, planted(origin))
    assert matching.pairs == origin
    assert set(matching.pairs) == set(t.modules)
    assert len(set(matching.pairs.values())) == len(matching.pairs)
    assert not any(a.weak for a in matching.alignments)
    levels = {a.level for a in matching.alignments}
    assert levels == ({"blocks", "slots"} if single else {"blocks"})


def test_deeper_target_of_real_size():
    s, t = known("ssd-1b"), known("sdxl")
    forth = match_modules(t, s, planted({}))
    origin = {source_path: path for path, source_path in forth.pairs.items()}
    matching = match_modules(s, t, planted(origin))
    assert matching.pairs == {path: origin[path] for path in t.modules if path in origin}
    assert set(matching.pairs.values()) == set(s.modules)


SHIFTED = {f"unet.up_blocks.{i}": f"unet.up_blocks.{i + 1}" for i in range(3)}


@pytest.mark.parametrize("target", ["bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny"])
@pytest.mark.parametrize("kept", [{0: 0, 1: 2}, {0: 1, 1: 2}])
def test_bk_sdm_slots_and_stages_are_found(target: str, kept: dict[int, int]):
    s, t = known("sd15"), known(target)
    stages = SHIFTED if target == "bk-sdm-tiny" else {}

    def came_from(path: str) -> str:
        place = unet_place(path)
        if place is None or place.direction != "up_blocks":
            return path
        first = f"{place.slot_path}.conv1"
        # Where a resnet's shapes fit one slot only, no other slot can have been planted.
        free = first not in t.modules or s.modules[at(first, kept)].shape == t.modules[first].shape
        return at(path, kept if free else {0: 0, 1: 2})

    def at(path: str, slots: dict[int, int]) -> str:
        return moved(path, stages, slots, lambda _, index: index)

    origin = {path: came_from(path) for path in t.modules}
    matching = match_modules(s, t, planted(origin))
    assert set(matching.pairs) == set(t.modules)
    assert matching.pairs == origin
    assert not any(a.weak for a in matching.alignments)
    if target == "bk-sdm-tiny":
        (up,) = (a for a in matching.alignments if a.slot == "unet.up_blocks")
        assert up.pairs == ((1, 0), (2, 1), (3, 2))
        assert up.margin is None  # shapes alone decide on the stages


def test_koala_keeps_the_blocks_with_the_best_scores():
    s, t = known("sdxl"), known("koala-700m")
    kept = {5: (1, 2, 5, 6, 9), 2: (0, 1)}

    def came_from(path: str) -> str:
        place = unet_place(path)
        up = place is not None and place.direction == "up_blocks"
        return moved(
            path,
            {},
            {0: 0, 1: 2} if up else {},
            lambda p, index: kept[depth_of(t, p.partition(BLOCK)[0])][index],
        )

    origin = {path: came_from(path) for path in t.modules}
    matching = match_modules(s, t, planted(origin))
    assert matching.pairs == origin


def test_stages_without_a_counterpart_are_left_out_by_score():
    """Four equal stages to two: shapes leave a choice, scores decide."""
    modules = {}
    for stage in range(4):
        path = f"unet.down_blocks.{stage}.resnets.0.conv2"
        modules[path] = ModuleSpec(path, (8, 8, 3, 3))
    source = BaseModelSpec("a", modules)
    target = BaseModelSpec("b", {p: m for p, m in modules.items() if p[17] in "01"})
    origin = {p: p.replace("blocks.1", "blocks.3").replace("blocks.0", "blocks.2") for p in modules}
    matching = match_modules(source, target, planted(origin))
    assert matching.pairs == {path: origin[path] for path in target.modules}
    (alignment,) = (a for a in matching.alignments if a.level == "stages")
    assert (alignment.slot, alignment.pairs) == ("unet.down_blocks", ((2, 0), (3, 1)))
    weak = match_modules(source, target, by_score(lambda s, t: 0.5))
    assert all(weak.is_weak(path) for path in target.modules)


def test_published_correspondence_is_used_unless_blocks_are_asked_for():
    s, t = known("sd15"), known("bk-sdm-base")
    origin = {path: moved(path, {}, {}, lambda _, index: index) for path in t.modules}
    published = match_modules(s, t, no_evidence, published=origin)
    assert published.matched_by == "published"
    assert published.pairs == {
        path: path for path in t.modules if s.modules[path].shape == t.modules[path].shape
    }
    blocks = match_modules(s, t, planted({}), "block", published=origin)
    assert blocks.matched_by == "block"


def test_each_module_by_itself():
    source = spec("a", **{"down_blocks.1.attentions.0": 3})
    target = spec("b", **{"down_blocks.1.attentions.0": 2})

    def score(source_path: str, path: str) -> float:
        return 0.9 if ".2." in source_path else 0.88 if path.endswith("to_q") else 0.1

    matching = match_modules(source, target, by_score(score), "module")
    assert matching.matched_by == "module"
    for index in range(2):
        path = f"{SLOT}{BLOCK}{index}.attn1.to_q"
        # Not one-to-one: both of the target's blocks take the best.
        assert matching.pairs[path] == f"{SLOT}{BLOCK}2.attn1.to_q"
        assert matching.is_weak(path)
        assert not matching.is_weak(f"{SLOT}{BLOCK}{index}.ff.net.2")
    assert matching.pairs["unet.conv_in"] == "unet.conv_in"
    chosen = {a.slot: a.source_slot for a in matching.alignments}
    assert chosen[f"{SLOT}{BLOCK}0.ff.net.2"] == f"{SLOT}{BLOCK}2.ff.net.2"


def test_text_encoders_keep_their_names():
    path = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    encoder = {path: ModuleSpec(path, (32, 8))}
    source = spec("a", **{"down_blocks.1.attentions.0": 2})
    source = replace(source, modules={**source.modules, **encoder})
    target = spec("b", **{"down_blocks.1.attentions.0": 1})
    target = replace(target, modules={**target.modules, **encoder})
    assert match_modules(source, target, block_scores([[0.1], [0.9]])).pairs[path] == path
