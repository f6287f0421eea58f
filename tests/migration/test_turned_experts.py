"""Experts that files have as one tensor, `(in, out)`: gpt-oss, Llama 4; Qwen 3 VL by its shapes.

Weights are held to what transformers' own modules compute, adapters to peft's merges.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import TURNED, LanguagePair, make_language_pair, merged
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from prolora_jax.adapters.formats.expert_parameters import UndecidedParameter
from prolora_jax.architectures.placement import placements
from prolora_jax.errors import AdapterRefused, BaseModelError
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

COPY = MigrationOptions(method="copy")
WEIGHTS = "adapter_model.safetensors"
E, R = 3, 2
BLOCKS = {"gpt-oss": "mlp", "llama4": "feed_forward"}
PARAMETERS = "gate_up_proj", "down_proj"
# peft counts no parameter among its targets.
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")


@pytest.fixture(scope="module", params=TURNED)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    """Both models, and an adapter of queries and of both parameters of all experts."""
    block = BLOCKS[request.param]
    return make_language_pair(
        tmp_path_factory.mktemp(request.param),
        request.param,
        depth=3,
        kept=(0, 2),
        layers=("q_proj",),
        target_parameters=[f"{block}.experts.{name}" for name in PARAMETERS],
        r=R,
    )


def block_of(net: Any, layer: int) -> tuple[str, Any]:
    inside = net.model.layers[layer]
    name = "mlp" if hasattr(inside, "mlp") else "feed_forward"
    return f"lm.model.layers.{layer}.{name}.experts", getattr(inside, name).experts


def test_an_expert_computes_what_its_module_does(pair: LanguagePair) -> None:
    model = load_base_model(pair.source)
    path, module = block_of(pair.source_net, 1)

    def layer(number: int, part: str) -> tuple[np.ndarray, np.ndarray | None]:
        own = f"{path}.{number}.{part}_proj"
        return model.weight(own), model.bias(own)

    x = torch.randn(E, 5, 32, generator=torch.Generator().manual_seed(0))
    for number in range(E):
        gate, up, down = (layer(number, part) for part in ("gate", "up", "down"))
        own = x[number].numpy()
        g, u = own @ gate[0].T, own @ up[0].T
        with torch.no_grad():
            if path.endswith("feed_forward.experts"):
                assert gate[1] is None
                ours = (u * g / (1 + np.exp(-g))) @ down[0].T
                theirs = module(x.reshape(-1, 32)).reshape(x.shape)[number]
            else:
                assert gate[1] is not None
                assert up[1] is not None
                assert down[1] is not None
                g, u = g + gate[1], u + up[1]
                g, u = np.minimum(g, module.limit), np.clip(u, -module.limit, module.limit)
                ours = ((u + 1) * g / (1 + np.exp(-module.alpha * g))) @ down[0].T + down[1]
                chosen = torch.full((5, 1), number)
                theirs = module(x[number], chosen, torch.ones(5, E))
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def updates(net: Any, adapter: Path) -> dict[str, np.ndarray]:
    before, after = net.state_dict(), merged(net, adapter).state_dict()
    found = {key: (after[key] - before[key]).numpy() for key in before}
    return {key: update for key, update in found.items() if update.any()}


def test_parameters_come_back_as_such(pair: LanguagePair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    migrate_file(pair.adapter, pair.source, pair.target, out, COPY)
    given, found = load_file(pair.adapter / WEIGHTS), load_file(out / WEIGHTS)
    assert {*found} == {key for key in given if ".layers.2." not in key}
    assert {key: a.shape for key, a in found.items()} == {k: given[k].shape for k in found}
    wanted, moved = updates(pair.source_net, pair.adapter), updates(pair.target_net, out)
    assert moved.keys() == {
        k for k in pair.target_net.state_dict() if pair.source_name(k) in wanted
    }
    assert sum("experts" in key for key in moved) == 2 * 2
    for key, update in moved.items():
        np.testing.assert_allclose(update, wanted[pair.source_name(key)], atol=2e-7)
    assert verify_file(out).ok


def test_each_projected_expert_is_one_of_its_own(pair: LanguagePair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = MigrationOptions(min_similarity=-1.0)
    report = migrate_file(pair.adapter, pair.source, pair.target, out, options).report
    path, _ = block_of(pair.target_net, 0)
    norms = {m.path: m.norm_out for m in report.modules}
    moved = updates(pair.target_net, out)[f"{path.removeprefix('lm.')}.gate_up_proj"]
    for number in range(E):
        parts = [norms[f"{path}.{number}.{part}_proj"] for part in ("gate", "up")]
        np.testing.assert_allclose(
            np.linalg.norm(moved[number]), np.hypot(parts[0], parts[1]), rtol=1e-5
        )
    assert verify_file(out).ok


def test_mlx_has_no_names_for_them(pair: LanguagePair, tmp_path: Path) -> None:
    given = pair.adapter, pair.source, pair.target, tmp_path / "out", COPY
    with pytest.raises(AdapterRefused, match="an expert of gpt-oss or Llama 4"):
        migrate_file(*given, Writing("mlx"))


def test_which_way_gpt_oss_has_a_square_parameter_is_not_guessed(tmp_path: Path) -> None:
    """It depends on transformers' version, which no file has, unless the other parameter tells."""
    fields = {"target_parameters": ["mlp.experts.down_proj"], "layers": ("q_proj",), "r": R}
    pair = make_language_pair(tmp_path, "gpt-oss", depth=1, kept=(0,), **fields)
    with pytest.raises(UndecidedParameter, match="as many rows as columns"):
        migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", COPY)


def test_mxfp4_is_unpacked_as_transformers_does(tmp_path: Path) -> None:
    """Every float of 4 bits with every sign, and scales from subnormal to large."""
    rng = np.random.default_rng(1)
    inner, width, groups = 48, 64, 2
    tensors: dict[str, np.ndarray] = {
        "model.layers.0.self_attn.q_proj.weight": np.zeros((8, width), "f4"),
        "model.layers.0.mlp.router.weight": np.zeros((E, width), "f4"),
    }
    path, wide = "model.layers.0.mlp.experts.gate_up_proj", (E, 2 * inner, groups)
    tensors[f"{path}_blocks"] = rng.integers(0, 256, (*wide, 16), "u1")
    tensors[f"{path}_scales"] = rng.integers(90, 140, wide, "u1")
    tensors[f"{path}_bias"] = rng.standard_normal((E, 2 * inner)).astype("f4")
    save_file(tensors, tmp_path / "model.safetensors")
    blocks, scales = (torch.from_numpy(tensors[f"{path}_{n}"]) for n in ("blocks", "scales"))
    whole = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()
    model = load_base_model(tmp_path)
    assert model.packings == {"mxfp4": 2 * E}
    for number in range(E):
        for start, part in enumerate(("gate_proj", "up_proj")):
            own = f"lm.model.layers.0.mlp.experts.{number}.{part}"
            wanted = whole[number][:, start::2].T
            np.testing.assert_array_equal(model.weight(own).astype("f4"), wanted)
            bias = tensors[f"{path}_bias"][number, start::2]
            np.testing.assert_array_equal(model.bias(own), bias)
    assert len({*model.fingerprints(model.spec.modules).values()}) == 2 * E + 2
    tensors[f"{path}_scales"] = tensors[f"{path}_scales"][:, 1:].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"gate_up_proj_blocks.*\(3, 95, 2\).*fetch"):
        load_base_model(tmp_path)


H, INNER = 12, 6
ATTENTION = {"model.layers.0.self_attn.q_proj.weight": (H, H)}
GATE = "model.layers.0.mlp.gate.weight"
EXPERTS = "model.layers.0.mlp.experts."


@pytest.mark.parametrize("turned", [False, True])
def test_shapes_say_which_way_round_matrices_are(turned: bool, tmp_path: Path) -> None:
    """Twice the inner width is the outer one: `gate_up_proj` alone would not tell."""
    rng = np.random.default_rng(0)
    wide, down = rng.standard_normal((E, 2 * INNER, H)), rng.standard_normal((E, H, INNER))
    tensors = {key: np.zeros(shape) for key, shape in ATTENTION.items()} | {
        GATE: np.zeros((E, H)),
        EXPERTS + "gate_up_proj": wide.swapaxes(1, 2) if turned else wide,
        EXPERTS + "down_proj": down.swapaxes(1, 2) if turned else down,
    }
    stored = {key: np.ascontiguousarray(a.astype("f4")) for key, a in tensors.items()}
    save_file(stored, tmp_path / "model.safetensors")
    model = load_base_model(tmp_path / "model.safetensors")
    for number in range(E):
        path = f"lm.{EXPERTS}{number}"
        for part, whole in (("gate", wide[:, :INNER]), ("up", wide[:, INNER:]), ("down", down)):
            own = whole[number].astype("f4")
            np.testing.assert_array_equal(model.weight(f"{path}.{part}_proj"), own)
            read = np.concatenate([*model.numbers(f"{path}.{part}_proj", 7)])
            np.testing.assert_array_equal(read, own.reshape(-1))
    prints = model.fingerprints(model.spec.modules)
    assert len({*prints.values()}) == len(prints)


def test_without_a_router_nothing_is_guessed() -> None:
    shapes = ATTENTION | {EXPERTS + "gate_up_proj": (E, H, H), EXPERTS + "down_proj": (E, H, INNER)}
    assert {*placements(shapes)} == {"lm.model.layers.0.self_attn.q_proj"}
