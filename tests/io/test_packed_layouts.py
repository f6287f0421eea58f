"""GPTQ, AWQ, torchao and optimum-quanto; the oracles are their own unpacking, kept in fixtures."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from packed_fixtures import fixture
from safetensors.torch import save_file

from prolora_jax.errors import BaseModelError
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model

Q_PROJ = "model.layers.0.self_attn.q_proj"
Q = f"lm.{Q_PROJ}"
GPTQ = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"}
LAYOUTS = {
    "gptq4": ("GPTQ 4 bits, zeros less 1", GPTQ),
    "gptq8": ("GPTQ 8 bits, zeros less 1", GPTQ | {"bits": 8}),
    "awq": ("AWQ 4 bits", {"quant_method": "awq", "bits": 4, "version": "gemm"}),
    "torchao_int8": ("torchao int8", {}),
    "torchao_float8": ("torchao float8", {}),
    "qint8": ("optimum-quanto qint8", {}),
    "qfloat8": ("optimum-quanto qfloat8", {}),
}


def saved(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    settings: Mapping[str, object],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A model's folder."""
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", dict(metadata or {}) or None)
    (folder / "config.json").write_text(json.dumps({"quantization_config": dict(settings)}))
    return folder


def opened(folder: Path, name: str, settings: Mapping[str, object] | None = None) -> BaseModel:
    made = fixture(name)
    own = LAYOUTS[name][1] if settings is None else settings
    return load_base_model(saved(folder, made.tensors, own, made.metadata))


@pytest.mark.parametrize("name", LAYOUTS)
def test_unpacked_as_its_library_does(name: str, tmp_path: Path):
    model, floats = opened(tmp_path, name), fixture(name).floats[Q_PROJ]
    weight = model.weight(Q)
    assert str(floats.dtype) == f"torch.{weight.dtype.name}"
    assert_array_equal(model.matrix(Q), floats.float().numpy())
    parts = [part.astype(np.float32) for part in model.numbers(Q, 100)]
    assert_array_equal(np.concatenate(parts), floats.float().numpy().reshape(-1))
    assert model.spec.modules[Q].shape == tuple(floats.shape)
    assert model.packings == {LAYOUTS[name][0]: 1}
    assert model.is_streamed(Q) is not name.startswith(("gptq", "awq"))


def test_what_is_to_be_known_of_awq(tmp_path: Path):
    (note,) = opened(tmp_path, "awq").notes
    assert note.startswith("AWQ has moved scales of columns into the layers before")
    assert opened(tmp_path, "gptq4").notes == ()


def test_zeros_that_are_stored_as_they_are(tmp_path: Path):
    """The same numbers as `gptq_v2`: zeros are 1 larger in the file, and the floats equal."""
    made = fixture("gptq4")
    zeros = made.tensors[f"{Q_PROJ}.qzeros"].numpy().view(np.uint32) + np.uint32(0x11111111)
    tensors = made.tensors | {f"{Q_PROJ}.qzeros": torch.from_numpy(zeros.view(np.int32))}
    settings = GPTQ | {"checkpoint_format": "gptq_v2"}
    model = load_base_model(saved(tmp_path / "v2", tensors, settings))
    assert_array_equal(model.matrix(Q), made.floats[Q_PROJ].float().numpy())
    assert model.fingerprint(Q) != opened(tmp_path / "v1", "gptq4").fingerprint(Q)


def test_the_same_bytes_in_two_formats_are_two_weights(tmp_path: Path):
    first = opened(tmp_path / "a", "gptq4")
    second = opened(tmp_path / "b", "gptq4", GPTQ | {"checkpoint_format": "gptq_v2"})
    assert first.fingerprint(Q) != second.fingerprint(Q)
    assert not np.array_equal(first.matrix(Q), second.matrix(Q))


def test_groups_in_turn_need_no_table(tmp_path: Path):
    """Without `g_idx` and with `desc_act` off, groups are of neighbouring columns."""
    made = fixture("gptq4")
    groups = torch.arange(64, dtype=torch.int32) // 16
    with_table = saved(tmp_path / "a", made.tensors | {f"{Q_PROJ}.g_idx": groups}, GPTQ)
    without = {key: t for key, t in made.tensors.items() if not key.endswith("g_idx")}
    in_turn = saved(tmp_path / "b", without, GPTQ | {"desc_act": False})
    assert_array_equal(load_base_model(in_turn).matrix(Q), load_base_model(with_table).matrix(Q))


def dropped(name: str, end: str) -> dict[str, torch.Tensor]:
    return {key: t for key, t in fixture(name).tensors.items() if not key.endswith(f".{end}")}


def replaced(name: str, end: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return fixture(name).tensors | {f"{Q_PROJ}.{end}": tensor}


AO = fixture("torchao_int8").metadata
SMOOTHED = torch.ones(48)
INT4 = {f"{Q_PROJ}.weight": AO[f"{Q_PROJ}.weight"].replace("Int8Tensor", "Int4Tensor")}
BAD = {
    "no word of the zeros": (
        lambda: (fixture("gptq4").tensors, {"quant_method": "gptq", "bits": 4}, None),
        r"q_proj: found GPTQ with checkpoint_format None in the config; expected gptq \(each zero "
        r"is stored less 1, as AutoGPTQ does\) or gptq_v2 \(as it is\); add the right one to quant",
    ),
    "three bits": (
        lambda: (fixture("gptq4").tensors, GPTQ | {"bits": 3}, None),
        r"q_proj: found GPTQ of 3 bits; expected bits of 2, 4, 8",
    ),
    "bits of another model": (
        lambda: (fixture("gptq4").tensors, GPTQ | {"bits": 8}, None),
        r"q_proj: found scales, qzeros and g_idx of shapes .*; expected .* for 32 inputs and 32",
    ),
    "no scales": (
        lambda: (dropped("gptq4", "scales"), GPTQ, None),
        r"q_proj: found g_idx, qweight, qzeros and no scales; expected all tensors of a weight",
    ),
    "no zeros": (
        lambda: (dropped("gptq4", "qzeros"), GPTQ, None),
        r"q_proj: found qweight without qzeros, of quant_method 'gptq'; expected gptq or awq, with",
    ),
    "no table of groups": (
        lambda: (dropped("gptq4", "g_idx"), GPTQ, None),
        r"q_proj: found no g_idx and no desc_act = false in the config; expected one of them",
    ),
    "another method": (
        lambda: (fixture("gptq4").tensors, {"quant_method": "hqq"}, None),
        r"q_proj: found qweight, of quant_method 'hqq'; expected gptq or awq",
    ),
    "another order of AWQ": (
        lambda: (fixture("awq").tensors, {"quant_method": "awq", "version": "gemv"}, None),
        r"q_proj: found AWQ of version gemv and 4 bits; expected gemm and 4; give the model in",
    ),
    "a class of torchao's": (
        lambda: (fixture("torchao_int8").tensors, {}, AO | INT4),
        r"q_proj: found torchao's Int4Tensor of int8; expected one of Int8Tensor, Float8Tensor",
    ),
    "no class": (
        lambda: (fixture("torchao_int8").tensors, {}, None),
        r"q_proj: found _weight_qdata and no model.layers.0.self_attn.q_proj.weight among the head",
    ),
    "a smoothed weight": (
        lambda: (replaced("torchao_int8", "_weight_act_pre_scale", SMOOTHED), {}, AO),
        r"q_proj: found a scale for what comes in \(act_pre_scale\), which the weight was divided",
    ),
    "scales of another weight": (
        lambda: (replaced("torchao_int8", "_weight_scale", torch.ones(24, 2)), {}, AO),
        r"q_proj: found a scale of shape \(24, 2\), float32; expected \(24, 3\) floats for a weigh",
    ),
    "no scale of quanto's": (
        lambda: (dropped("qint8", "weight._scale"), {}, None),
        r"q_proj: found .*weight._data and no weight._scale; expected all tensors of a weight",
    ),
    "four bits of quanto's": (
        lambda: (replaced("qint8", "weight._shift", torch.ones(24, 1)), {}, None),
        r"q_proj: found weight._shift, a packing of optimum-quanto's qint2 or qint4; expected one",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_whole_is_refused(what: str, tmp_path: Path):
    make, message = BAD[what]
    with pytest.raises(BaseModelError, match=message):
        load_base_model(saved(tmp_path / "bad", *make()))


def test_a_zero_that_may_be_two(tmp_path: Path):
    """15, stored less 1, is 16, or 0 less 1: nobody can tell, and only the numbers say it."""
    made = fixture("gptq4")
    zeros = torch.full_like(made.tensors[f"{Q_PROJ}.qzeros"], -1)
    model = load_base_model(saved(tmp_path, replaced("gptq4", "qzeros", zeros), GPTQ))
    with pytest.raises(BaseModelError, match=r"found a zero of 15, which stored less 1 is 0 or 16"):
        model.weight(Q)
    groups = torch.full_like(made.tensors[f"{Q_PROJ}.g_idx"], 9)
    model = load_base_model(saved(tmp_path, replaced("gptq4", "g_idx", groups), GPTQ))
    with pytest.raises(BaseModelError, match=r"found group 9 in g_idx; expected 4 groups"):
        model.weight(Q)
