"""Adapters on running nets: merged, beside the kernels, several at once; peft is the oracle."""

from typing import Any

import builders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unets
from flax import nnx
from flax.core import FrozenDict
from numpy.testing import assert_allclose, assert_array_equal

import prolora_jax as pl
from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, alike
from prolora_jax.architectures.flax_trees import flax_table, nested
from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.naming import flax_path
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.errors import AdapterRefused, UsageError
from prolora_jax.nets.adapters.adapted import adapted
from prolora_jax.nets.adapters.lora import attach, attached, detach, merge, unmerge
from prolora_jax.nets.adapters.tree import kernels, spec_of, walk
from prolora_jax.nets.unet.loading import load_unet
from prolora_jax.nets.unet.unet import UNet

ATOL = 2e-5  # float32 nets whose predictions are about 1


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> dict[str, Any]:
    """A torch net with two adapters by peft, what it predicts, and the same net and files."""
    folder, given = tmp_path_factory.mktemp("nets"), unets.inputs(unets.SMALLEST)
    torch_net = unets.torch_net(unets.SMALLEST)
    net, params = load_unet(unets.save(torch_net, folder / "base"))
    spec = pl.load_base_model(folder / "base").spec
    files = {}
    for name, rank, targets in (
        ("ink", 4, builders.EVERYTHING),
        ("paper", 2, builders.ATTENTION),
    ):
        one = unets.torch_net(unets.SMALLEST)
        shared: Any = {"targets": targets, "rank": rank, "alpha": 3, "seed": rank}
        builders.add_lora(one, **shared)
        files[name] = builders.save_by_diffusers(one, folder / name)
        builders.add_lora(torch_net, **shared, adapter_name=name)

    def want(**scales: float) -> np.ndarray:
        torch_net.set_adapters(list(scales), list(scales.values()))
        return unets.predicted_by_torch(torch_net, given)

    adapters = {name: pl.load_adapter(file, spec) for name, file in files.items()}
    return {"net": net, "params": params, "given": given, "want": want, "adapters": adapters}


def run(nets, params, scales: dict[str, Any]) -> np.ndarray:
    def predict(params, scales, *given):
        with adapted(scales):
            return nets["net"].apply({"params": params}, *given)

    compiled = jax.jit(predict, compiler_options=unets.QUICK)
    return np.asarray(compiled(params, scales, *nets["given"]))


def leaves_of(tree: Any) -> dict[tuple, Any]:
    return {
        place: getattr(leaf, "get_value", lambda leaf=leaf: leaf)() for place, leaf in walk(tree)
    }


def test_merged_as_peft_and_unmerged_again(nets):
    params, net, given = nets["params"], nets["net"], nets["given"]
    ink = nets["adapters"]["ink"]
    before = unets.predicted(net, params, given)
    merged = merge(params, ink, 0.7)
    found = unets.predicted(net, merged, given)
    assert np.abs(found - before).max() > 0.1
    assert_allclose(found, nets["want"](ink=0.7), rtol=0, atol=ATOL)
    touched = {kernels(params)[m.path] for m in ink.modules}
    back = leaves_of(unmerge(merged, ink, 0.7))
    for place, leaf in leaves_of(params).items():
        if place in touched:
            assert_allclose(back[place], leaf, rtol=0, atol=1e-6 * np.abs(leaf).max())
        else:
            assert back[place] is leaf


def test_two_beside_the_kernels_as_peft(nets):
    params, adapters = nets["params"], nets["adapters"]
    both = attach(params, adapters)
    old, new = leaves_of(params), leaves_of(both)
    assert all(new[place] is leaf for place, leaf in old.items())  # no second copy of the base
    assert len(new) == len(old) + 2 * sum(len(a.modules) for a in adapters.values())
    for scales in ({"ink": 1.0, "paper": 0.5}, {"ink": -0.8, "paper": 1.3}, {"paper": 1.0}):
        assert_allclose(run(nets, both, scales), nets["want"](**scales), rtol=0, atol=ATOL)
    assert_array_equal(run(nets, both, {}), run(nets, params, {}))


def test_switching_compiles_nothing(nets):
    ink, paper = nets["adapters"]["ink"], nets["adapters"]["paper"]
    assert ink.ranks != paper.ranks
    assert len(ink.modules) != len(paper.modules)

    def adapted_net(params, scales):
        with adapted(scales):
            return nets["net"].apply({"params": params}, *nets["given"])

    predict: Any = jax.jit(adapted_net)

    both = attach(nets["params"], {"ink": ink, "paper": paper})
    for one, two in ((1, 0), (0, 1), (0.3, 0.3)):
        scales = {"ink": jnp.float32(one), "paper": jnp.float32(two)}
        want = nets["want"](ink=one, paper=two)
        assert_allclose(np.asarray(predict(both, scales)), want, rtol=0, atol=ATOL)
    assert predict._cache_size() == 1
    # In and out of one place, though ranks and modules differ.
    for name, adapter in zip(("ink", "paper"), alike([ink, paper]), strict=True):
        tree = attach(nets["params"], {"style": adapter})
        found = predict(tree, {"style": jnp.float32(1)})
        assert_allclose(np.asarray(found), nets["want"](**{name: 1}), rtol=0, atol=ATOL)
    assert predict._cache_size() == 2  # one more tree, one more program


def test_what_is_in_a_tree_is_read_again(nets):
    both = attach(nets["params"], nets["adapters"])
    found = attached(both)
    assert found.keys() == {"ink", "paper"}
    for name, adapter in nets["adapters"].items():
        want = {m.path: builders.delta(m) for m in adapter.modules}
        builders.assert_deltas(found[name], want)
    assert spec_of(both).modules == spec_of(nets["params"]).modules
    one = detach(both, "ink")
    assert attached(one).keys() == {"paper"}
    assert leaves_of(detach(both)) == leaves_of(nets["params"])
    # As MaxDiffusion has a 1x1 convolution: as a linear layer.
    spec = published_spec("bk-sdm-tiny")
    path = "unet.down_blocks.0.attentions.0.proj_in"
    module = builders.random_module(path, spec)
    (in_tree,) = leaves_of(
        attached(
            nested(
                {
                    f"{flax_path(path)}/lora-a/down/kernel": module.down[:, :, 0, 0].T,
                    f"{flax_path(path)}/lora-a/up/kernel": module.up[:, :, 0, 0].T,
                }
            ),
            spec,
        )
    ).values()
    builders.assert_deltas(in_tree, {path: builders.delta(module)})


@pytest.mark.parametrize("name", CONFIGS)
def test_places_are_maxdiffusions(name):
    """Its layout, written out: `lora-<name>` beside a layer's kernel, two kernels in it."""
    spec, shapes = published_spec(name), flax_table(unet_table(CONFIGS[name]))
    params = nested({p: jax.ShapeDtypeStruct(s, jnp.bfloat16) for p, s in shapes.items()})
    assert spec_of(params).architecture == name
    places = ["/".join(map(str, place)) for place in kernels(params).values()]
    assert len(places) == len(spec.component("unet"))
    attention = [p for p in places if "/attn" in p]
    adapter = Adapter(
        tuple(
            pl.LoraModule(path, np.zeros((1, w), np.float16), np.zeros((o, 1), np.float16))
            for path, (o, w) in ((p, spec.modules[p].shape) for p in spec.modules if ".attn" in p)
        ),
        "kohya-ldm",
    )
    tree = {"/".join(place): leaf.shape for place, leaf in walk(attach(params, {"x": adapter}))}
    want = dict(shapes)
    for place in attention:
        layer, (width, out) = place.removesuffix("/kernel"), shapes[place]
        want |= {f"{layer}/lora-x/down/kernel": (width, 1), f"{layer}/lora-x/up/kernel": (1, out)}
    assert tree == want


def test_frozen_and_nnx_trees(nets):
    net, params, ink = nets["net"], nets["params"], nets["adapters"]["ink"]
    frozen = merge(FrozenDict(params), ink)
    assert isinstance(frozen, FrozenDict)
    want = nets["want"](ink=1)
    assert_allclose(unets.predicted(net, frozen, nets["given"]), want, rtol=0, atol=ATOL)
    model = nnx.bridge.ToNNX(net)
    nnx.update(model, nnx.State(jax.tree.map(nnx.Param, params)))
    state = nnx.state(model, nnx.Param)
    merged = merge(state, ink)
    assert isinstance(merged, nnx.State)
    pure = nnx.to_pure_dict(merged)
    assert_allclose(unets.predicted(net, pure, nets["given"]), want, rtol=0, atol=ATOL)
    nnx.update(model, attach(state, {"ink": ink}))
    with adapted({"ink": 1.0}):
        found = model(*nets["given"])
    assert_allclose(np.asarray(found), want, rtol=0, atol=ATOL)
    assert attached(nnx.state(model, nnx.Param)).keys() == {"ink"}


class Block(nnx.Module):
    """A piece of a UNet as an nnx author would write it, lists where torch has them."""

    def __init__(self, rngs: nnx.Rngs):
        self.to_q = nnx.Linear(12, 8, use_bias=False, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(8, 8, rngs=rngs)])
        self.conv = nnx.Conv(8, 4, (3, 3), rngs=rngs)


def test_nnx_modules_with_lists():
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.down_blocks = nnx.List([Block(rngs), Block(rngs)])

    net = Net(nnx.Rngs(0))
    state = nnx.state(net)
    spec = spec_of(state)
    assert sorted(spec.modules) == [
        f"unet.down_blocks.{i}.{name}" for i in (0, 1) for name in ("conv", "to_out.0", "to_q")
    ]
    modules = [builders.random_module(path, spec, alpha=2) for path in spec.modules]
    old = {path: np.asarray(state["down_blocks"][1]["conv"]["kernel"]) for path in ("conv",)}
    nnx.update(net, merge(state, Adapter(tuple(modules), "diffusers")))
    delta = next(builders.delta(m) for m in modules if m.path == "unet.down_blocks.1.conv")
    want = old["conv"] + delta.reshape(4, 8, 3, 3).transpose(2, 3, 1, 0)
    assert_allclose(np.asarray(net.down_blocks[1].conv.kernel), want, rtol=0, atol=1e-6)


def test_bfloat16_and_donation(nets):
    ink = nets["adapters"]["ink"]
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nets["params"])
    merged = merge(half, ink)
    back = unmerge(merged, ink)
    for module in ink.modules:
        place = kernels(half)[module.path]
        old, total, new = (
            np.asarray(leaves_of(tree)[place], np.float32) for tree in (half, merged, back)
        )
        assert leaves_of(merged)[place].dtype == jnp.bfloat16
        exact = old + layout.weight_to_kernel(pl.delta(ink, module.path))
        assert (np.abs(total - exact) <= 2.0**-8 * np.abs(exact) + 1e-9).all()  # rounded once
        assert (np.abs(new - old) <= 2.0**-8 * (np.abs(total) + np.abs(new)) + 1e-9).all()
    kept = {
        place: np.asarray(leaf) for place, leaf in leaves_of(merge(nets["params"], ink)).items()
    }
    copy = jax.tree.map(lambda x: jnp.array(x, copy=True), nets["params"])
    given_up = merge(copy, ink, donate=True)
    place = kernels(copy)[ink.modules[0].path]
    assert leaves_of(copy)[place].is_deleted()
    for where, leaf in leaves_of(given_up).items():
        assert_array_equal(leaf, kept[where])


def test_gradients_of_factors_alone_with_remat(nets):
    tree = attach(nets["params"], {"ink": nets["adapters"]["ink"]})

    def gradients(remat: bool) -> Any:
        net = UNet(nets["net"].config, remat=remat)

        def loss(params):
            with adapted({"ink": 1.0}):
                found: Any = net.apply({"params": params}, *nets["given"])
            return jnp.square(found).mean()

        return leaves_of(jax.jit(jax.grad(loss), compiler_options=unets.QUICK)(tree))

    kept, again = gradients(False), gradients(True)
    factors = [place for place in kept if "lora-ink" in place]
    assert factors
    for place in factors:
        assert np.abs(kept[place]).max() > 0
        assert_allclose(again[place], kept[place], rtol=1e-3, atol=1e-6)


def test_what_is_refused(nets):
    params, ink = nets["params"], nets["adapters"]["ink"]
    both = attach(params, {"ink": ink})
    with pytest.raises(UsageError, match=r"adapter 'ink': found a name that is taken; .*\['ink'\]"):
        attach(both, {"ink": ink})
    with pytest.raises(UsageError, match="adapter 'a/b': found no name; expected one without /"):
        attach(params, {"a/b": ink})
    with pytest.raises(
        UsageError, match=r"adapter 'x': not in the tree; expected one of \['ink'\]"
    ):
        detach(both, "x")
    with pytest.raises(UsageError, match="adapter 'x': no layer that ran has one of this name"):
        run(nets, both, {"ink": 1.0, "x": 1.0})
    small = nested({"down_blocks_0/to_q/kernel": np.zeros((8, 8), np.float32)})
    with pytest.raises(AdapterRefused, match="modules are not in base model params"):
        merge(small, ink)
    clip = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    extra = pl.LoraModule(clip, np.ones((1, 4), np.float32), np.ones((4, 1), np.float32))
    mixed = Adapter((*ink.modules, extra), "diffusers", origin="mixed.safetensors")
    match = r"mixed.safetensors: 1/\d+ modules are not in the parameters, first text_encoder.*fc1"
    with pytest.raises(AdapterRefused, match=match):
        merge(params, mixed)
    only = leaves_of(merge(params, mixed, parts=("unet",)))
    for place, leaf in leaves_of(merge(params, ink)).items():
        assert_array_equal(only[place], leaf)


def test_layers_that_take_no_adapter():
    from flax import linen as nn

    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.DenseGeneral(2, name="odd")(x)

    kernel = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    factors = {"down": {"kernel": jnp.ones((3, 1))}, "up": {"kernel": jnp.ones((1, 2))}}
    tree = {"odd": kernel | {"lora-a": factors}}
    with (
        pytest.raises(
            UsageError, match="odd: found an adapter at a DenseGeneral; expected a linear"
        ),
        adapted({"a": 1.0}),
    ):
        Odd().apply({"params": tree}, jnp.ones((1, 3)))
