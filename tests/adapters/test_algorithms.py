"""LoHa, LoKr, Tucker cores, full differences and DoRA: read as their own libraries compute them."""

import json
import warnings
from dataclasses import replace
from typing import Any

import builders
import numpy as np
import pytest
import torch
from builders import TINY_XL
from other_algorithms import EXACT, LAYERS, XL, Made, by_lycoris, read, weights_of, with_factors
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict

from prolora_jax.adapters.adapter import Adapter, delta
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.adapters.algorithms.factoring import factored
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.layout import weight_to_matrix
from prolora_jax.verification.structured import DENSE, factor_problems

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "loha": ("loha", "loha", {}),
    "loha-tucker": ("loha", "loha", {"use_tucker": True}),
    "lokr": ("lokr", "lokr", {"factor": 4}),
    "lokr-full": ("lokr", "lokr", {"linear_dim": 10000, "conv_dim": 10000}),
    "lokr-both": ("lokr", "lokr", {"decompose_both": True, "linear_dim": 1, "conv_dim": 1}),
    "lokr-tucker": ("lokr", "lokr", {"use_tucker": True, "factor": 4, "conv_dim": 2}),
    "tucker": ("lora", "locon-tucker", {"use_tucker": True}),
    "full": ("full", "full", {}),
    "dora": ("lora", "dora", {"dora_wd": True}),
    "dora-input": ("lora", "dora", {"dora_wd": True, "wd_on_output": False}),
    "dora-tucker": ("lora", "dora", {"dora_wd": True, "use_tucker": True}),
    "dora-loha": ("loha", "dora", {"dora_wd": True}),
    "dora-lokr": ("lokr", "dora", {"dora_wd": True, "factor": 4}),
}


def worst(adapter: Adapter, updates: dict[str, np.ndarray]) -> float:
    """Largest error of an update, relative to its norm."""
    errors = [
        np.linalg.norm(weight_to_matrix(delta(adapter, path)) - update) / np.linalg.norm(update)
        for path, update in updates.items()
    ]
    return float(max(errors))


def cases(*algorithms: str):
    names = [name for name, (_, algorithm, _) in CASES.items() if algorithm in algorithms]
    return pytest.mark.parametrize("name", names)


def is_read(name: str):
    algo, algorithm, options = CASES[name]
    made = by_lycoris(algo, **options)
    adapter = read(made.tensors)
    assert algorithm in {module.algorithm for module in adapter.structured}
    exact = with_factors(adapter, made)
    assert {module.path for module in exact.modules} == set(LAYERS)
    assert worst(exact, made.updates) < 1e-6
    # The oracle's own formulas, written a second time, say the same.
    for module in resolve(adapter, XL).structured:
        weight = made.weights[module.path].astype(np.float64)
        dense = DENSE[module.algorithm](module, XL.modules[module.path].shape, weight)
        update = made.updates[module.path]
        assert np.linalg.norm(dense - update) < 1e-6 * np.linalg.norm(update)


@pytest.mark.proves("LoHa (also with a core)", "read", "lycoris-lora's forward")
@cases("loha")
def test_loha(name: str):
    is_read(name)


@pytest.mark.proves("LoKr (all layouts)", "read", "lycoris-lora's forward")
@cases("lokr")
def test_lokr(name: str):
    is_read(name)


@pytest.mark.proves("LoCon with a Tucker core, full difference", "read", "lycoris-lora's forward")
@cases("locon-tucker", "full")
def test_tucker_and_full(name: str):
    is_read(name)


@pytest.mark.proves("DoRA (both axes; of LoCon, LoHa, LoKr)", "read", "lycoris-lora's forward")
@cases("dora")
def test_dora(name: str):
    is_read(name)


def by_peft(config: Any) -> tuple[dict[str, np.ndarray], Made]:
    """peft's tensors under its own keys, and the difference that its merge makes."""
    plain = builders.build_unet(TINY_XL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(builders.build_unet(TINY_XL), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.0 + 0.3 * torch.randn(parameter.shape, generator=generator))
            elif any(part in name for part in ("hada_", "lokr_", "lora_")):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    tensors = {k: v.detach().numpy().copy() for k, v in get_peft_model_state_dict(model).items()}
    merged = weights_of(model.merge_and_unload())
    before = weights_of(plain)
    updates = {path: merged[path].astype(np.float64) - before[path] for path in LAYERS}
    return tensors, Made({}, updates, before)


TARGETS = [path.removeprefix("unet.") for path in LAYERS]


@pytest.mark.proves("LoHa, LoKr, DoRA of peft", "read", "peft's merge")
@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (LoHaConfig(r=3, alpha=5, target_modules=TARGETS), {"peft_type": "LOHA", "alpha": 5}),
        (
            LoHaConfig(r=3, alpha=5, target_modules=TARGETS, use_effective_conv2d=True),
            {"peft_type": "LOHA", "alpha": 5},
        ),
        (LoKrConfig(r=2, alpha=5, target_modules=TARGETS), {"peft_type": "LOKR", "alpha": 5}),
        (
            LoKrConfig(
                r=2, alpha=5, target_modules=TARGETS, decompose_both=True, decompose_factor=4
            ),
            {"peft_type": "LOKR", "alpha": 5},
        ),
        (
            LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_dora=True),
            {"peft_type": "LORA", "lora_alpha": 5, "use_dora": True},
        ),
    ],
    ids=["loha", "loha-conv", "lokr", "lokr-both", "dora"],
)
def test_files_of_peft(config: Any, fields: dict[str, Any]):
    tensors, made = by_peft(config)
    adapter = read(tensors, {"lora_adapter_metadata": json.dumps(fields | {"r": config.r})})
    assert {module.path for module in adapter.structured} == set(LAYERS)
    # peft merges in float32: half a unit in the last place of the weight, too.
    assert worst(with_factors(adapter, made), made.updates) < 3e-6


def test_what_is_of_low_rank_stays_exact_and_what_is_not_says_what_it_keeps():
    loha, full = by_lycoris("loha"), by_lycoris("full")
    low = with_factors(read(loha.tensors), loha, FactorRank(0.5, 9))
    assert worst(low, loha.updates) < 1e-6
    assert {m.rank for m in low.modules} == {9}
    assert {m.made_from.kept for m in low.modules if m.made_from} == {1.0}
    cut = with_factors(read(full.tensors), full, FactorRank(1.0, 5))
    for module in cut.modules:
        sigma = np.linalg.svd(full.updates[module.path], compute_uv=False) ** 2
        assert module.made_from is not None
        assert module.rank == 5
        assert module.made_from.kept == pytest.approx(sigma[:5].sum() / sigma.sum(), abs=1e-6)


def test_energy_decides_where_the_most_allows():
    made = by_lycoris("full")
    adapter = with_factors(read(made.tensors), made, FactorRank(0.9, None))
    for module in adapter.modules:
        sigma = np.linalg.svd(made.updates[module.path], compute_uv=False) ** 2
        share = np.cumsum(sigma) / sigma.sum()
        assert module.rank == int(np.argmax(share >= 0.9)) + 1


@pytest.mark.parametrize("algo", ["lokr", "loha", "full", "lora"])
def test_factors_that_are_not_the_updates_are_noticed(algo: str):
    options = {"use_tucker": True} if algo == "lora" else {}
    made = by_lycoris(algo, **options)
    given = resolve(read(made.tensors), XL)
    rank = FactorRank(0.999, 8)
    factors = factored(given, XL, made.weights.__getitem__, rank)
    shapes = {path: module.shape for path, module in XL.modules.items()}
    how = (shapes, made.weights.__getitem__, rank.energy, rank.most)
    assert factor_problems(given, factors, *how) == {}
    worse = factored(given, XL, made.weights.__getitem__, FactorRank(0.999, 2))
    assert factor_problems(given, worse, *how).keys() >= {
        module.path
        for module in worse.modules
        if module.made_from is not None and module.made_from.kept < 0.999
    }
    found = factor_problems(given, with_noise(factors), *how)
    assert set(found) == {module.path for module in given.structured}


def test_a_scale_whose_square_no_float_holds_is_refused():
    made = by_lycoris("lokr")
    tensors = dict(made.tensors)
    for key in (key for key in tensors if key.endswith(".alpha")):
        tensors[key] = np.asarray(1e200, np.float64)
    with pytest.raises(AdapterRefused, match="update of LoKr that float32 does not hold"):
        with_factors(read(tensors), made, FactorRank(0.999, 2))


def with_noise(adapter: Adapter) -> Adapter:
    return replace(adapter, modules=tuple(replace(m, up=m.up * 1.001) for m in adapter.modules))


NAME = "lora_unet_" + LAYERS[0].removeprefix("unet.").replace(".", "_")


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"hada_w1_a": ones(32, 2), "hada_w1_b": ones(2, 32)}, "found hada_w1_a .*of LoHa"),
        ({"lokr_w1": ones(2, 2), "lokr_w2_a": ones(16, 2)}, "found lokr_w1 .*of LoKr"),
        ({"dora_scale": ones(32, 1)}, "expected the tensors of one algorithm"),
        ({"lokr_w1": ones(2, 2), "hada_w1_a": ones(2, 2)}, "expected the tensors of one algorithm"),
        (
            {"diff": ones(32, 32), "lora_down.weight": ones(2, 32), "lora_up.weight": ones(32, 2)},
            "diff",
        ),
    ],
    ids=["half-loha", "half-lokr", "magnitude-alone", "two-algorithms", "lora-and-diff"],
)
def test_parts_that_make_no_module_are_refused(tensors: dict[str, np.ndarray], message: str):
    with pytest.raises(AdapterRefused, match=message) as caught:
        read({f"{NAME}.{part}": array for part, array in tensors.items()})
    assert caught.value.code is Refusal.INCOMPLETE_PAIR


LOHA = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)}
PAIR = {"lora_down.weight": (2, 32), "lora_up.weight": (32, 2)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (LOHA | {"hada_w2_b": (3, 32)}, r"found hada_w1_a .* of LoHa; expected w_a \(out, rank\)"),
        (LOHA | {"hada_w1_a": (31, 2)}, "of LoHa; expected"),
        ({"lokr_w1": (2, 2), "lokr_w2": (8, 16)}, r"whose Kronecker product is \(32, 32\)"),
        ({"lokr_w1_a": (2, 3), "lokr_w1_b": (2, 2), "lokr_w2": (16, 16)}, "Kronecker product"),
        (PAIR | {"lora_mid.weight": (2, 2, 3, 3)}, r"of LoCon-Tucker; expected down"),
        ({"diff": (32, 16)}, r"expected diff \(32, 32\)"),
        (PAIR | {"lora_up.weight": (32, 2, 2, 2), "dora_scale": (32, 1)}, "of DoRA; expected down"),
        ({"lokr_w1": (2, 2, 2, 2), "lokr_w2": (16, 16)}, "whose Kronecker product"),
        (PAIR | {"dora_scale": (31, 1)}, r"one number for each of 32 rows"),
        (PAIR | {"dora_scale": (1, 31)}, r"one number for each of 32 rows"),
    ],
)
def test_wrong_shapes_are_refused(shapes: dict[str, tuple[int, ...]], message: str):
    tensors = {f"{NAME}.{part}": ones(*shape) for part, shape in shapes.items()}
    with pytest.raises(AdapterRefused, match=message) as caught:
        resolve(read(tensors), XL)
    assert caught.value.code is Refusal.SHAPE_MISMATCH
    assert LAYERS[0] in str(caught.value)


def test_weights_that_are_not_at_hand_are_asked_for():
    made = by_lycoris("lora", dora_wd=True)
    with pytest.raises(AdapterRefused, match="needs-source-weights:DoRA: .*give it") as caught:
        factored(resolve(read(made.tensors), XL), XL, None, EXACT)
    assert caught.value.code is Refusal.NEEDS_SOURCE_WEIGHTS


@pytest.mark.parametrize(("said", "scale"), [("rank", 1.0), ("zero", 0.0)])
def test_alpha_of_zero_is_disputed_here_too(said: Any, scale: float):
    tensors = {f"{NAME}.{part}": ones(*shape) for part, shape in LOHA.items()}
    tensors[f"{NAME}.alpha"] = np.zeros((), np.float32)
    with pytest.raises(AdapterRefused, match="found alpha 0"):
        read(tensors)
    adapter = parse(tensors, {}, "file", said, structured=True)
    factors = factored(resolve(adapter, XL), XL)
    assert delta(factors, LAYERS[0])[0, 0] == pytest.approx(4 * scale)
