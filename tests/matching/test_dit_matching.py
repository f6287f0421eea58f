"""Depth pairs of diffusion transformers: made weights, with the published maps as the truth.

Nets have the depth and the names of the published ones and are a few numbers wide; the cosines of
their weights are taken here, densely.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from dit_tables import depth_map

from prolora_jax.architectures.dit.correspondence import BLOCK_MAPS, dit_source_paths
from prolora_jax.architectures.dit.published import dit_modules
from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.matching.known_sources import known_sources
from prolora_jax.matching.matching import match_modules

STACK = "transformer.transformer_blocks."
ANIMA = {28: "cosmos-predict2-2b", 40: "anima-2-9b", 52: "anima-3-8b"}
INSERTED_NOISE, NOISE, ANEW = 0.7, 0.2, 2.0


def small(name: str) -> BaseModelSpec:
    """A published model with sizes of a few numbers."""
    modules = {
        f"transformer.{path}": ModuleSpec(
            f"transformer.{path}", tuple(max(1, size // 384) for size in shape)
        )
        for path, shape in dit_modules(name).items()
    }
    return BaseModelSpec(name, modules)


def noise(seed: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(seed.encode())).standard_normal(shape)


def numbered(path: str) -> tuple[int, str] | None:
    number, _, role = path.removeprefix(STACK).partition(".")
    return (int(number), role) if path.startswith(STACK) else None


def made(spec: BaseModelSpec, sources: Sequence[int], anew: Sequence[int] = ()):
    """A model's weights: block i is block `sources[i]` of its ancestor, changed a little.

    A block that comes from the same one as the block before was put in: its outputs began as
    zeros, and all of it has changed more. Those of `anew` were trained anew.
    """
    found = {}
    for path, module in spec.modules.items():
        at, origin, size = numbered(path), path, NOISE
        if at is not None:
            origin = f"{STACK}{sources[at[0]]}.{at[1]}"
            put_in = at[0] > 0 and sources[at[0]] == sources[at[0] - 1]
            size = ANEW if at[0] in anew else INSERTED_NOISE if put_in else NOISE
            if put_in and at[1].endswith(("to_out.0", "net.2")):
                origin, size = "", 1.0
        base = noise(origin, module.shape) if origin else np.zeros(module.shape)
        found[path] = base + size * noise(f"{spec.name} {path}", module.shape)
    return found


def cosine_evidence(source: dict[str, np.ndarray], target: dict[str, np.ndarray]):
    def evidence(sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        a = np.stack([source[path].reshape(-1) for path in sources])
        b = np.stack([target[path].reshape(-1) for path in targets])
        norms = np.broadcast_arrays((a * a).sum(1)[:, None], (b * b).sum(1)[None])
        return np.stack([a @ b.T, *norms], -1)

    return evidence


def blocks_of(pairs: dict[str, str]) -> dict[int, int]:
    """Source block by target block; that all modules of a block agree is asserted here."""
    found: dict[int, set[int]] = {}
    for path, origin in pairs.items():
        at, source = numbered(path), numbered(origin)
        assert (at is None) == (source is None)
        if at is not None and source is not None:
            assert at[1] == source[1]
            found.setdefault(at[0], set()).add(source[0])
    assert all(len(sources) == 1 for sources in found.values())
    return {block: sources.pop() for block, sources in found.items()}


def no_evidence(sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
    raise AssertionError("asked for evidence where order leaves no choice")


def kept(sources: Sequence[int]) -> dict[int, int]:
    """Source by target block without those that were put in."""
    return {i: s for i, s in enumerate(sources) if i == 0 or s != sources[i - 1]}


FLEX = depth_map("flux1 19->8 (flex)")


def test_flex_is_recovered_from_weights():
    source, target = small("flux1-dev"), small("flex1-alpha")
    weights = made(source, range(19)), made(target, FLEX, anew=[4])
    found = match_modules(source, target, cosine_evidence(*weights), "block")
    assert blocks_of(dict(found.pairs)) == dict(enumerate(FLEX))
    assert set(found.pairs) == set(target.modules)
    (double,) = (a for a in found.alignments if a.slot == "transformer.transformer_blocks")
    assert (double.source_blocks, double.target_blocks) == (19, 8)
    assert double.margin is not None
    assert double.margin > 0.05
    assert not any(found.is_weak(path) for path in target.modules)
    # Thirty-eight single blocks on either side leave one order, and are no double blocks.
    assert {path for path, origin in found.pairs.items() if path != origin} == {
        path for path in target.modules if (at := numbered(path)) and at[0] != FLEX[at[0]]
    }


@pytest.mark.parametrize(
    ("before", "after", "back"), [(28, 40, False), (28, 40, True), (40, 52, False)]
)
def test_blocks_that_were_put_in_are_left_out(before, after, back):
    sources = depth_map(f"anima {before}->{after}")
    truth = kept(sources)
    source, target = small(ANIMA[before]), small(ANIMA[after])
    weights = made(source, range(before)), made(target, sources)
    if back:
        source, target, weights = target, source, weights[::-1]
        truth = {s: i for i, s in truth.items()}
    found = match_modules(source, target, cosine_evidence(*weights), "block")
    assert blocks_of(dict(found.pairs)) == truth
    assert found.alignments[0].margin is not None
    assert found.alignments[0].margin > 0.05
    assert not any(found.is_weak(path) for path in target.modules)


def test_published_maps_are_the_published_ones():
    for source in ("flux1-dev", "flux1-schnell"):
        assert list(BLOCK_MAPS[source, "flex2-preview"].sources) == FLEX
    for before, after in [(28, 40), (40, 52), (28, 52)]:
        known = BLOCK_MAPS[ANIMA[before], ANIMA[after]]
        found = {i: s for i, s in enumerate(known.sources) if s is not None}
        assert found == kept(depth_map(f"anima {before}->{after}"))
        back = {i: t for i, t in enumerate(known.reversed().sources) if t is not None}
        assert back == {s: i for i, s in found.items()}


def agreeing(share: float, truth: dict[int, int]) -> Callable[..., np.ndarray]:
    """Evidence by which that share of the blocks is most like its published source."""
    few = sorted(truth)[: round(share * len(truth))]

    def evidence(sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        at = [numbered(path) for path in (*sources, *targets)]
        numbers = [place[0] for place in at if place is not None]
        a, b = numbers[: len(sources)], numbers[len(sources) :]
        right = [[s == (truth.get(t) if t in few else 10) for t in b] for s in a]
        return np.stack([np.where(right, 0.9, 0.1), *2 * [np.ones((len(a), len(b)))]], -1)

    return evidence


@pytest.mark.parametrize(
    ("source", "target", "sources"),
    [("flux1-dev", "flex1-alpha", FLEX), (ANIMA[28], ANIMA[40], depth_map("anima 28->40"))],
    ids=["flex", "anima"],
)
def test_published_maps_are_believed_where_weights_agree(source, target, sources):
    s, t = published_spec(source), published_spec(target)
    truth = kept(sources)
    found = known_sources(s, t, agreeing(1.0, truth))
    assert found is not None
    assert blocks_of(found) == truth
    matching = match_modules(s, t, no_evidence, published=found)
    assert matching.matched_by == "published"
    assert blocks_of(dict(matching.pairs)) == truth
    assert known_sources(s, t, agreeing(0.8, truth)) == found
    assert known_sources(s, t, agreeing(0.6, truth)) is None
    back = known_sources(t, s, agreeing(1.0, {s: i for i, s in truth.items()}))
    assert back is not None
    assert blocks_of(back) == {s: i for i, s in truth.items()}


def test_a_published_map_without_attention_to_compare_is_not_believed() -> None:
    flux, flex = published_spec("flux1-dev"), published_spec("flex1-alpha")
    mlps = {path: m for path, m in flex.modules.items() if not m.kind_is("attn")}
    assert known_sources(flux, replace(flex, modules=mlps), no_evidence) is None


def test_nothing_is_published_of_other_models():
    flux, flex = published_spec("flux1-dev"), published_spec("flex1-alpha")
    assert dit_source_paths(flux, published_spec("sd35-large")) is None
    assert known_sources(flux, replace(flex, family=None), no_evidence) is None


def test_a_double_block_is_no_single_block():
    def only(stack: str) -> BaseModelSpec:
        paths = [f"transformer.{stack}.{i}.attn.to_q" for i in range(2)]
        return BaseModelSpec(stack, {path: ModuleSpec(path, (4, 4)) for path in paths})

    double, single = only("transformer_blocks"), only("single_transformer_blocks")
    for mode in ("auto", "block", "module", "name"):
        assert not match_modules(double, single, no_evidence, mode).pairs
