"""Base models that bitsandbytes has packed; the oracle is its own unpacking, kept in fixtures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from packed_fixtures import Fixture, fixture
from safetensors.torch import save_file

from prolora_jax.errors import BaseModelError
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model

Q_PROJ = "model.layers.0.self_attn.q_proj"
Q = f"lm.{Q_PROJ}"
PACKINGS = {
    "nf4": "nf4",
    "nf4_twice": "nf4, packed twice",
    "fp4_stored_as_bf16": "fp4, packed twice",
    "int8": "int8 by rows",
}


def numbers(model: BaseModel, path: str, step: int) -> np.ndarray:
    return np.concatenate([part.astype(np.float32) for part in model.numbers(path, step)])


@pytest.mark.parametrize("name", PACKINGS)
def test_unpacked_as_its_library_does(name: str):
    made = fixture(name)
    model = load_base_model(made.file)
    assert {path: module.shape for path, module in model.spec.modules.items()} == {
        f"lm.{path}": tuple(floats.shape) for path, floats in made.floats.items()
    }
    for path, floats in made.floats.items():
        weight = model.weight(f"lm.{path}")
        assert str(floats.dtype) == f"torch.{weight.dtype.name}"
        assert_array_equal(model.matrix(f"lm.{path}"), floats.float().numpy())
        assert model.is_streamed(f"lm.{path}")
        for step in (77, 64, 4096):
            assert_array_equal(
                numbers(model, f"lm.{path}", step), floats.float().numpy().reshape(-1)
            )
        assert model.packing(f"lm.{path}") == PACKINGS[name]


def test_specs_and_fingerprints_beside_the_floats(tmp_path: Path):
    """Equal specs, unequal fingerprints, also of one weight packed once and twice."""
    made = fixture("nf4")
    plain = {f"{path}.weight": floats for path, floats in made.floats.items()}
    save_file(plain, tmp_path / "nf4.safetensors")
    packed, floats = load_base_model(made.file), load_base_model(tmp_path / "nf4.safetensors")
    assert packed.spec == floats.spec
    assert_array_equal(packed.weight(Q), floats.weight(Q))
    prints = {packed.fingerprint(Q), floats.fingerprint(Q)}
    for end in ("weight", "weight.absmax", "weight.quant_map"):
        changed = dict(made.tensors)
        changed[f"{Q_PROJ}.{end}"] = changed[f"{Q_PROJ}.{end}"].clone()
        changed[f"{Q_PROJ}.{end}"].view(torch.uint8).reshape(-1)[3] ^= 1
        save_file(changed, tmp_path / f"{end}.safetensors")
        prints.add(load_base_model(tmp_path / f"{end}.safetensors").fingerprint(Q))
    assert len(prints) == 5


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_layers_that_gpt2_stores_the_other_way_round(name: str, tmp_path: Path):
    """Packed, they are linear layers, `(out, in)`, as everywhere else."""
    made = fixture(name)
    conv = "transformer.h.0.attn.c_attn"
    tensors = {key.replace(Q_PROJ, conv): tensor for key, tensor in made.tensors.items()}
    save_file(tensors | {f"{conv}.bias": torch.ones(24)}, tmp_path / "gpt2.safetensors")
    model = load_base_model(tmp_path / "gpt2.safetensors")
    want = made.floats[Q_PROJ].float().numpy()
    assert model.spec.modules[f"lm.{conv}"].shape == want.shape
    assert_array_equal(model.matrix(f"lm.{conv}"), want)
    assert_array_equal(numbers(model, f"lm.{conv}", 100), want.reshape(-1))
    bias = model.bias(f"lm.{conv}")
    assert bias is not None
    assert bias.shape == (24,)


def test_parts_in_two_shards(tmp_path: Path):
    made = fixture("nf4_twice")
    apart = {key: key.endswith("absmax") for key in made.tensors}
    for number in (0, 1):
        part = {key: made.tensors[key] for key, second in apart.items() if second is bool(number)}
        save_file(part, tmp_path / f"model-{number}.safetensors")
    index = {"weight_map": {key: f"model-{int(b)}.safetensors" for key, b in apart.items()}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load_base_model(tmp_path)
    assert_array_equal(model.matrix(Q), made.floats[Q_PROJ].float().numpy())
    assert model.fingerprint(Q) == load_base_model(made.file).fingerprint(Q)


def with_state(made: Fixture, **changes: object) -> dict[str, torch.Tensor]:
    key = f"{Q_PROJ}.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(made.tensors[key].numpy().tobytes()) | changes
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return made.tensors | {key: text}


def without(made: Fixture, end: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in made.tensors.items() if not key.endswith(f".{end}")}


STATE = "quant_state.bitsandbytes__nf4"
BAD = {
    "no scales": (
        lambda: without(fixture("nf4"), "absmax"),
        r"q_proj: found weight, .* and no weight.absmax; expected all tensors of a weight packed "
        r"as bitsandbytes' nf4 or fp4; fetch the model again, or give one whose weights are not",
    ),
    "no state": (
        lambda: without(fixture("nf4"), STATE),
        r"q_proj: found .* and no weight.quant_state.bitsandbytes__nf4 or .*fp4; expected all",
    ),
    "no outer scales": (
        lambda: without(fixture("nf4_twice"), "nested_quant_map"),
        r"q_proj: found weight.nested_absmax and a state without .*; expected weight.nested_quant",
    ),
    "another shape": (
        lambda: with_state(fixture("nf4"), shape=[24, 72]),
        r"q_proj: found 840 bytes, 27 absmax and 16 codes; expected 864 bytes, 27 absmax .* for a "
        r"weight of shape \(24, 72\); fetch",
    ),
    "a dtype of none": (
        lambda: with_state(fixture("nf4"), dtype="complex64"),
        r'q_proj: found a state \{.*"complex64".*\}; expected the state of a weight of 4 bits',
    ),
    "no scales of 8 bits": (
        lambda: without(fixture("int8"), "SCB"),
        r"up_proj: found int8 numbers and nothing that says what they stand for; expected scales",
    ),
    "an order for a device": (
        lambda: (
            fixture("int8").tensors
            | {f"{Q_PROJ}.weight_format": torch.tensor(2, dtype=torch.uint8)}
        ),
        r"q_proj: found weight_format 2, an order for some device; expected 0, row by row; save",
    ),
    "scales of another weight": (
        lambda: fixture("int8").tensors | {f"{Q_PROJ}.SCB": torch.ones(40)},
        r"q_proj: found SCB of shape \(40,\), float32; expected 24 floats for a weight of shape",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_whole_is_refused(what: str, tmp_path: Path):
    tensors, message = BAD[what]
    save_file(tensors(), tmp_path / "bad.safetensors")
    with pytest.raises(BaseModelError, match=message):
        load_base_model(tmp_path / "bad.safetensors")
