"""IA3, OFT, BOFT and GLoRA of LyCORIS: it writes, its `forward` computes.

Its `forward` is asked, not its merging functions (formats.md 7).
"""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from layers import (
    CONV,
    LINEAR,
    ROOT,
    SHAPES,
    SPEC,
    SQUARE,
    answer,
    assert_read,
    build_net,
    layer_of,
    randomised,
    save,
    weights_of,
)
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module

from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter

FLAT = {path: "lora_unet_" + path.removeprefix("unet.").replace(".", "_") for path in SHAPES}


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def written(
    kind: Any, tmp_path: Any, *, paths: tuple[str, ...] = tuple(SHAPES), **options: Any
) -> Any:
    """A file of one of LyCORIS's modules on each layer; with the weights and the updates."""
    net = build_net()
    weights, state, want = weights_of(net), {}, {}
    for seed, path in enumerate(paths):
        layer = layer_of(net, path)
        before = answer(layer, SHAPES[path])
        module = kind(FLAT[path], layer, 1.0, **options)
        own = {key: tensor.detach().numpy() for key, tensor in module.state_dict().items()}
        own = randomised(own, seed=seed)
        missing = module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in own.items()})
        assert not missing.unexpected_keys
        module.apply_to()
        want[path] = answer(layer, SHAPES[path]) - before
        state |= {f"{FLAT[path]}.{key}": array for key, array in own.items()}
    return state, weights, want


@pytest.mark.proves("lycoris IA3", "read", "lycoris-lora writes, its forward computes")
@pytest.mark.parametrize("on_input", [False, True])
def test_ia3(tmp_path, on_input):
    state, weights, want = written(IA3Module, tmp_path, train_on_input=on_input)
    assert state[f"{FLAT[LINEAR]}.on_input"].dtype == np.int64
    assert_read(save(state, tmp_path / "a.safetensors"), weights, want)


@pytest.mark.proves("diag-OFT", "read", "lycoris-lora writes, its forward computes")
@pytest.mark.parametrize("constraint", [0.0, -1.0, 0.02, 100.0])
@pytest.mark.parametrize("rescaled", [False, True])
def test_oft(tmp_path, constraint, rescaled):
    options: dict[str, Any] = {"constraint": constraint, "rescaled": rescaled}
    state, weights, want = written(DiagOFTModule, tmp_path, lora_dim=4, **options)
    assert_read(save(state, tmp_path / "a.safetensors"), weights, want)


@pytest.mark.proves("lycoris BOFT", "read", "lycoris-lora writes, its forward computes")
@pytest.mark.parametrize("constraint", [0.0, 0.02])
@pytest.mark.parametrize("rescaled", [False, True])
def test_boft(tmp_path, constraint, rescaled):
    options: dict[str, Any] = {"constraint": constraint, "rescaled": rescaled}
    state, weights, want = written(ButterflyOFTModule, tmp_path, lora_dim=4, **options)
    assert state[f"{FLAT[LINEAR]}.oft_blocks"].shape[0] > 1
    assert_read(save(state, tmp_path / "a.safetensors"), weights, want)


@pytest.mark.proves("GLoRA", "read", "lycoris-lora writes, its forward computes")
@pytest.mark.parametrize("old", [False, True], ids=["new", "old-names"])
def test_glora(tmp_path, old):
    state, weights, want = written(GLoRAModule, tmp_path, lora_dim=4, alpha=6)
    if old:  # what is now called 1 was called 2
        swapped = str.maketrans("12", "21")
        state = {
            f"{name}.{end.translate(swapped)}" if end != "alpha" else f"{name}.{end}": array
            for key, array in state.items()
            for name, _, end in [key.partition(".")]
        }
    assert_read(save(state, tmp_path / "a.safetensors"), weights, want)


def test_glora_with_a_core(tmp_path):
    # LyCORIS has the formula and makes no such module: a plain one whose `b2` is the core's product
    # with it computes the update.
    rng = np.random.default_rng(0)
    core = rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
    b2 = rng.standard_normal((4, 8, 1, 1)).astype(np.float32)
    net = build_net()
    weights, layer = weights_of(net), layer_of(net, CONV)
    before = answer(layer, SHAPES[CONV])
    module: Any = GLoRAModule(FLAT[CONV], layer, 1.0, lora_dim=4, alpha=2)
    own = {key: tensor.detach().numpy() for key, tensor in module.state_dict().items()}
    own = randomised(own) | {"b2.weight": np.einsum("mnkl,njxy->mjkl", core, b2)}
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in own.items()})
    module.apply_to()
    want = {CONV: answer(layer, SHAPES[CONV]) - before}
    own |= {"b2.weight": b2, "bm.weight": core}
    state = {f"{FLAT[CONV]}.{key}": array for key, array in own.items()}
    assert_read(save(state, tmp_path / "a.safetensors"), weights, want)


# --- refusals ---


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def glora(path: str, rank: int, down: int) -> dict[str, np.ndarray]:
    out, width = SHAPES[path][:2]
    shapes = {"a1": (width, rank), "a2": (rank, width), "b1": (out, rank), "b2": (rank, down)}
    return {f"{name}.weight": zeros(*shape) for name, shape in shapes.items()}


ONE = np.array(1)
MISFITS = [
    (
        {"weight": zeros(24), "on_input": ONE * 0},
        r"on_input \(\) of IA3; .*each of 16 rows",
    ),
    ({"weight": zeros(16), "on_input": ONE}, r"of IA3; expected one number for each of 24 input"),
    ({"weight": zeros(16), "on_input": zeros(2)}, r"on_input \(2,\) of IA3; expected ia3_l alone"),
    ({"oft_blocks": zeros(3, 5, 5)}, r"\(3, 5, 5\) of OFT; .*number \* size = 16, the rows"),
    ({"oft_blocks": zeros(4, 4, 2)}, r"\(4, 4, 2\) of OFT; expected blocks \(number, size, size"),
    ({"oft_blocks": zeros(4, 4, 4), "rescale": zeros(8, 1)}, r"rescale \(8, 1\) of OFT; .*\(16, 1"),
    ({"oft_blocks": zeros(4, 4, 4), "rescale": zeros()}, r"rescale \(\) of OFT; .*\(16, 1"),
    ({"oft_blocks": zeros(1, 3, 5, 5)}, r"\(1, 3, 5, 5\) of BOFT; expected blocks \(stages, num"),
    ({"oft_blocks": zeros(4, 4, 4, 4)}, r"of BOFT; .*2\*\*\(stages - 1\) \* size a divisor of it"),
    (glora(LINEAR, 4, 23), r"b2 \(4, 23\) of GLoRA; expected a1 \(in, rank\), a2 \(rank, in\)"),
]


@pytest.mark.parametrize(("parts", "match"), MISFITS)
def test_tensors_that_are_not_those_of_the_layer(tmp_path, parts, match):
    state = {f"{FLAT[LINEAR]}.{end}": array for end, array in parts.items()}
    file = save(state, tmp_path / "a.safetensors")
    message = rf"{LINEAR}: found .*{match}.*; name the base model that the adapter was trained"
    with pytest.raises(AdapterRefused, match=message) as caught:
        load_adapter(file, SPEC, structured=True)
    assert caught.value.code is Refusal.SHAPE_MISMATCH


def test_glora_of_which_either_order_of_names_fits(tmp_path):
    names = ("a1", "a2", "b1", "b2")
    state = {f"{FLAT[SQUARE]}.{n}.weight": zeros(16, 16, 1, 1) for n in names}
    state[f"{FLAT[SQUARE]}.bm.weight"] = zeros(16, 16, 3, 3)
    match = "expected a rank other than 16, with which either order of names fits"
    with pytest.raises(AdapterRefused, match=match):
        load_adapter(save(state, tmp_path / "a.safetensors"), SPEC, structured=True)


@pytest.mark.parametrize(
    ("ends", "match"),
    [
        (("on_input",), r"found on_input .*as ia3_l or ia3_weight, on_input of IA3; fetch"),
        (("rescale",), "found rescale .*as oft_blocks of OFT; fetch the file again"),
        (("a1.weight", "b1.weight"), "found a1 .*, b1 .*as a1, a2, b1, b2 of GLoRA; fetch"),
    ],
)
def test_half_a_set_of_parts(tmp_path, ends, match):
    state = {f"{FLAT[LINEAR]}.{end}": zeros(16, 4) for end in ends}
    with pytest.raises(AdapterRefused, match=match) as caught:
        load_adapter(save(state, tmp_path / "a.safetensors"), SPEC, structured=True)
    assert caught.value.code is Refusal.INCOMPLETE_PAIR


def test_a_weight_alone_is_no_ia3(tmp_path):
    state = {f"{ROOT}.to_q.weight": zeros(16)}
    with pytest.raises(AdapterRefused, match="found key|keys are unknown|not-an-adapter"):
        load_adapter(save(state, tmp_path / "a.safetensors"), SPEC, structured=True)
