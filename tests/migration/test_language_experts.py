"""Experts: an adapter of each, or of a parameter for all; peft merges both into its models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from language_models import EXPERTS, LanguagePair, make_language_pair, merged
from safetensors.numpy import load_file, save_file

from prolora_jax.adapters.adapter import Adapter, delta
from prolora_jax.adapters.formats.expert_parameters import UndecidedParameter
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

COPY = MigrationOptions(method="copy")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROOT = "base_model.model.model.layers.0.mlp.experts"
E, R, H = 3, 2, 32
FUSED = transformers.__version__ >= "5"  # has the experts of a layer as one parameter
PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": R, "lora_alpha": 3}
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# It counts no parameter among its targets, and takes what patterns say of one all the same.
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module", params=EXPERTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    """Both models; the adapter has a pair for each layer of each expert of the first layers."""
    folder = tmp_path_factory.mktemp(request.param)
    made = make_language_pair(
        folder, request.param, depth=3, kept=(0, 2), layers=("q_proj",), target_modules=["q_proj"]
    )
    layers = [k for k in load_file(made.source / "model.safetensors") if ".experts." in k]
    shapes = {k: load_file(made.source / "model.safetensors")[k].shape for k in layers}
    tensors = {}
    for key, (out, inner) in shapes.items():
        name = f"base_model.model.{key.removesuffix('.weight')}"
        tensors[f"{name}.lora_A.weight"] = numbers(R, inner)
        tensors[f"{name}.lora_B.weight"] = numbers(out, R)
    names = {key.split(".")[-2] for key in layers}
    write(made.adapter, tensors, PLAIN | {"target_modules": sorted(names)})
    return made


def numbers(*shape: int) -> np.ndarray:
    return (0.1 * RNG.standard_normal(shape)).astype(np.float32)


def write(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def updates(net: Any, adapter: Path) -> dict[str, np.ndarray]:
    before, after = net.state_dict(), merged(net, adapter).state_dict()
    found = {key: (after[key] - before[key]).numpy() for key in before}
    return {key: update for key, update in found.items() if update.any()}


def require_equal(pair: LanguagePair, out: Path) -> None:
    given, found = updates(pair.source_net, pair.adapter), updates(pair.target_net, out)
    assert found.keys() == {
        key for key in pair.target_net.state_dict() if pair.source_name(key) in given
    }
    assert any("experts" in key for key in found)
    for key, update in found.items():
        np.testing.assert_allclose(update, given[pair.source_name(key)], atol=2e-7)


def test_the_experts_of_files_of_transformers_4_move_one_by_one(
    pair: LanguagePair, tmp_path: Path
) -> None:
    migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", COPY)
    given, found = load_file(pair.adapter / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert len(found) == len(given) * 2 // 3
    assert {key.split("experts")[1] for key in found} == {key.split("experts")[1] for key in given}
    require_equal(pair, tmp_path / "out")


def test_a_router_stands_for_none_of_the_layers_beside_it(
    pair: LanguagePair, tmp_path: Path
) -> None:
    """It is as wide as they are, and linear by its shape."""
    source = load_base_model(pair.source)
    (router,) = (p for p in source.spec.modules if ".0." in p and p.endswith(".gate"))
    assert source.spec.modules[router].shape == (E, H)
    options = MigrationOptions(method="copy", match="block")
    found = migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", options)
    for module in found.report.modules:
        assert module.path.rpartition(".")[2] == module.source_path.rpartition(".")[2]


@pytest.mark.skipif(not FUSED, reason="transformers 4 has no parameter for all experts")
@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize(
    "parameters", [[*BOTH, "mlp.gate.weight"], BOTH[::-1], BOTH[:1], BOTH[1:]], ids=str
)
def test_parameters_of_all_experts_come_back_as_such(
    family: str, parameters: list[str], tmp_path: Path
) -> None:
    down = any("down_proj" in name for name in parameters)  # peft warns of idle patterns
    patterns: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
    if down:
        patterns = {"rank_pattern": {r".*\.down_proj": 3}, "alpha_pattern": {r".*\.down_proj": 5}}
    pair = make_language_pair(
        tmp_path,
        family,
        depth=3,
        kept=(0, 2),
        layers=("q_proj",),
        target_parameters=parameters,
        r=R,
        **patterns,
        use_rslora=len(parameters) == 1,
    )
    out = tmp_path / "out"
    migrate_file(pair.adapter, pair.source, pair.target, out, COPY)
    given, found = load_file(pair.adapter / WEIGHTS), load_file(out / WEIGHTS)
    last = {key for key in given if ".layers.2." in key}
    assert {*found} == {key for key in given if key not in last}
    assert {key: a.shape for key, a in found.items()} == {k: given[k].shape for k in found}
    require_equal(pair, out)
    assert verify_file(out).ok


@pytest.mark.skipif(not FUSED, reason="transformers 4 has no parameter for all experts")
def test_an_expert_that_stays_behind_gets_nothing(tmp_path: Path) -> None:
    fields = {"layers": ("q_proj",), "target_parameters": BOTH, "r": R}
    pair = make_language_pair(tmp_path, "qwen3-moe", depth=2, kept=(0, 1), **fields)
    options = MigrationOptions(method="copy", exclude=("*.experts.1.*", "*.1.mlp*down_proj"))
    migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", options)
    given, found = (
        updates(pair.source_net, pair.adapter),
        updates(pair.target_net, tmp_path / "out"),
    )
    assert len(found) == 2 + 2 + 1  # queries, gates with ups; downs of the first layer alone
    for key, update in found.items():
        wanted = given[key].copy()
        if "experts" in key:
            wanted[1] = 0.0
        np.testing.assert_allclose(update, wanted, atol=2e-7)


@pytest.mark.skipif(not FUSED, reason="transformers 4 has no parameter for all experts")
def test_projected_experts_are_merged_as_single_ones_are(tmp_path: Path) -> None:
    fields = {"layers": ("q_proj",), "target_parameters": BOTH, "r": R}
    pair = make_language_pair(tmp_path, "mixtral", depth=3, kept=(0, 2), **fields)
    out = tmp_path / "out"
    options = MigrationOptions(min_similarity=-1.0)
    report = migrate_file(pair.adapter, pair.source, pair.target, out, options).report
    assert len([m for m in report.modules if ".experts." in m.path]) == 2 * E * 3
    assert verify_file(out).ok
    assert load_file(out / WEIGHTS)[f"{ROOT}.base_layer.lora_A.weight"].shape[0] % E == 0
    moved, norms = updates(pair.target_net, out), {m.path: m.norm_out for m in report.modules}
    experts = moved["model.layers.0.mlp.experts.down_proj"]
    for number in range(E):
        norm = norms[f"lm.model.layers.0.block_sparse_moe.experts.{number}.w2"]
        np.testing.assert_allclose(np.linalg.norm(experts[number]), norm, rtol=1e-5)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseModel, int]:
    """A base model, and the width of its experts."""
    folder = tmp_path_factory.mktemp("qwen")
    EXPERTS["qwen3-moe"].build(2, seed=0).save_pretrained(folder)
    return load_base_model(folder), 20


def einsum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As peft has it: `o r e, e r i -> e o i`, experts slowest in A and fastest in B."""
    a, b = a.reshape(E, -1, a.shape[1]), b.reshape(b.shape[0], -1, E)
    return 1.5 * np.einsum("ore,eri->eoi", b.astype(np.float64), a.astype(np.float64))


def files(width: int, *, exchanged: bool) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Tensors of both parameters, and what they add: `(experts, out, in)`."""
    sizes = {".base_layer": (H, 2 * width), "": (width, H)}
    tensors, added = {}, []
    for place, (inner, out) in sizes.items():
        inner, out = (out, inner) if exchanged else (inner, out)
        a, b = numbers(E * R, inner), numbers(out, E * R)
        tensors[f"{ROOT}{place}.lora_A.weight"], tensors[f"{ROOT}{place}.lora_B.weight"] = a, b
        update = einsum(a, b)
        added.append(update.transpose(0, 2, 1) if exchanged else update)
    return tensors, added[0], added[1]


def of_expert(adapter: Adapter, number: int) -> list[np.ndarray]:
    names = ("gate_proj", "up_proj", "down_proj")
    root = f"lm.model.layers.0.mlp.experts.{number}"
    return [delta(adapter, f"{root}.{name}") for name in names]


@pytest.mark.parametrize(("version", "exchanged"), [("0.18.1", True), ("0.21.2", False)])
def test_both_of_peft_s_ways_are_read(
    qwen: tuple[BaseModel, int], version: str, exchanged: bool, tmp_path: Path
) -> None:
    base, width = qwen
    tensors, gate_up, down = files(width, exchanged=exchanged)
    config = PLAIN | {"target_parameters": BOTH, "peft_version": version}
    adapter = load_adapter(write(tmp_path / "given", tensors, config), base.spec)
    slowest = einsum(
        tensors[f"{ROOT}.lora_A.weight"],
        tensors[f"{ROOT}.lora_B.weight"].reshape(-1, E, R).swapaxes(1, 2).reshape(-1, R * E),
    )
    for number in range(E):
        gate, up, moved = of_expert(adapter, number)
        np.testing.assert_allclose(np.concatenate([gate, up]), gate_up[number], atol=1e-7)
        np.testing.assert_allclose(moved, down[number], atol=1e-7)
        wrong = slowest[number].T if exchanged else slowest[number]
        assert np.linalg.norm(wrong - moved) > 0.5 * np.linalg.norm(moved)
    # Written again in the way that it came.
    migrate_file(tmp_path / "given", base, base, tmp_path / "out", COPY)
    found = load_file(tmp_path / "out" / WEIGHTS)
    for key, array in tensors.items():
        assert found[key].shape == array.shape
    name = f"{ROOT}.base_layer.lora_"
    np.testing.assert_allclose(
        einsum(found[f"{name}A.weight"], found[f"{name}B.weight"]) / 1.5,
        einsum(tensors[f"{name}A.weight"], tensors[f"{name}B.weight"]),
        atol=1e-7,
    )


def test_which_way_is_not_guessed_where_shapes_do_not_tell(tmp_path: Path) -> None:
    kind = EXPERTS["qwen3-moe"]
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**kind.sizes, "moe_intermediate_size": H // 2}
    config = transformers.Qwen3MoeConfig(**sizes, num_hidden_layers=1)
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "base")
    base = load_base_model(tmp_path / "base")
    tensors, gate_up, _ = files(H // 2, exchanged=False)
    said = PLAIN | {"target_parameters": BOTH}
    with pytest.raises(UndecidedParameter, match="as many rows as columns"):
        load_adapter(write(tmp_path / "given", tensors, said), base.spec)
    write(tmp_path / "given", tensors, said | {"peft_version": "0.19.1"})
    adapter = load_adapter(tmp_path / "given", base.spec)
    np.testing.assert_allclose(np.concatenate(of_expert(adapter, 1)[:2]), gate_up[1], atol=1e-7)


def test_of_which_parameter_is_not_guessed_either(
    qwen: tuple[BaseModel, int], tmp_path: Path
) -> None:
    base, width = qwen
    tensors, _, down = files(width, exchanged=False)
    outer = {key: a for key, a in tensors.items() if "base_layer" not in key}
    # Shapes tell where the configuration does not.
    adapter = load_adapter(write(tmp_path / "given", outer, PLAIN), base.spec)
    np.testing.assert_allclose(of_expert_down(adapter), down[0], atol=1e-7)
    square = {key: numbers(*a.shape[:1], 8) for key, a in outer.items()}
    square = {key: a if "lora_A" in key else numbers(8, E * R) for key, a in square.items()}
    with pytest.raises(UndecidedParameter, match="no parameter"):
        load_adapter(write(tmp_path / "given", square, PLAIN), base.spec)


def of_expert_down(adapter: Adapter) -> np.ndarray:
    return delta(adapter, "lm.model.layers.0.mlp.experts.0.down_proj")
