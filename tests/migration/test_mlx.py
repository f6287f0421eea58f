"""MLX-LM's folders, against what its layers do when they are fused, written in NumPy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from language_models import EXPERTS, LanguagePair, make_language_pair, merged
from safetensors.numpy import load_file, save_file

from prolora_jax.adapters.adapter import delta
from prolora_jax.adapters.algorithms.factoring import factored
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.adapters.inputs import expand
from prolora_jax.io.adapters.whole_files import convert_file
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

COPY = MigrationOptions(method="copy")
H, R, SCALE = 32, 3, 20.0
RNG = np.random.default_rng(11)


def numbers(*shape: int) -> np.ndarray:
    return (0.02 * RNG.standard_normal(shape)).astype(np.float32)


def write(folder: Path, tensors: dict[str, np.ndarray], **fields: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": R, "scale": SCALE, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters} | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def fused(folder: Path, name: str) -> np.ndarray:
    """What a layer adds: `(scale * b.T) @ a.T`; of experts `scale * b @ a`, of rows `a @ b`."""
    tensors = load_file(folder / "adapters.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_parameters"]["scale"]
    a, b = (tensors[f"{name}.lora_{x}"].astype(np.float64) for x in "ab")
    if a.ndim == 3:
        return (scale * b) @ a
    return (scale * a) @ b if name == "model.embed_tokens" else (scale * b.T) @ a.T


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    return make_language_pair(tmp_path_factory.mktemp("mlx"), "mistral")


def test_the_scale_is_no_alpha_and_both_factors_are_transposed(
    pair: LanguagePair, tmp_path: Path
) -> None:
    base = load_base_model(pair.source)
    root = "model.layers.3"
    tensors = {
        f"{root}.self_attn.q_proj.lora_a": numbers(H, R),
        f"{root}.self_attn.q_proj.lora_b": numbers(R, 48),
        f"{root}.mlp.down_proj.lora_a": numbers(48, R),
        f"{root}.mlp.down_proj.lora_b": numbers(R, H),
        "model.embed_tokens.lora_a": numbers(40, R),
        "model.embed_tokens.lora_b": numbers(R, H),
    }
    folder = write(tmp_path / "given", tensors)
    adapter = load_adapter(folder, base.spec)
    assert adapter.format == "mlx"
    names = (f"{root}.self_attn.q_proj", f"{root}.mlp.down_proj", "model.embed_tokens")
    for name in names:
        np.testing.assert_allclose(delta(adapter, f"lm.{name}"), fused(folder, name), atol=1e-9)
    # A file alone, its configuration beside it, and the folder among others.
    alone = load_adapter(folder / "adapters.safetensors", base.spec)
    assert alone.fingerprint == adapter.fingerprint
    save_file(tensors, folder / "0000100_adapters.safetensors")
    inside = {item.path.name: item.ignored is None for item in expand([tmp_path])}
    assert inside == {"given": True, "0000100_adapters.safetensors": False}
    # peft merges the same.
    convert_file(folder, "peft", tmp_path / "out", pair.source)
    after = merged(pair.source_net, tmp_path / "out").state_dict()
    for name in names:
        key = f"{name}.weight"
        found = (after[key] - pair.source_net.state_dict()[key]).numpy()
        np.testing.assert_allclose(found, fused(folder, name), atol=2e-7)
    # And back again: the numbers of the factors are those of the input.
    convert_file(tmp_path / "out", "mlx", tmp_path / "back", pair.source)
    again = load_file(tmp_path / "back/adapters.safetensors")
    assert again.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(again[key], array)


def test_what_is_written_is_what_peft_adds(pair: LanguagePair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = MigrationOptions(method="copy", exclude=("*.0.*",))
    migrate_file(pair.adapter, pair.source, pair.target, out, options, Writing(format="mlx"))
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["num_layers"] == 2  # of three, the last ones
    assert config["model"] == str(pair.target)
    assert config["lora_parameters"]["keys"] == sorted(
        [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    )
    given = merged(pair.source_net, pair.adapter).state_dict()
    before = pair.source_net.state_dict()
    names = {key.rpartition(".")[0] for key in load_file(out / "adapters.safetensors")}
    assert len(names) == 7 * 2
    for name in names:
        origin = pair.source_name(f"{name}.weight")
        update = (given[origin] - before[origin]).numpy()
        np.testing.assert_allclose(fused(out, name), update, atol=2e-7)
    checked = verify_file(out)
    assert checked.ok, checked.problems


def test_modules_of_several_scales_and_ranks_get_one(tmp_path: Path) -> None:
    patterns: dict[str, Any] = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 9}}
    pair = make_language_pair(tmp_path, "llama", depth=2, kept=(0, 1), **patterns)
    convert_file(pair.adapter, "mlx", tmp_path / "out", pair.source)
    after, before = (
        net.state_dict() for net in (merged(pair.source_net, pair.adapter), pair.source_net)
    )
    for key, array in load_file(tmp_path / "out/adapters.safetensors").items():
        name, _, part = key.rpartition(".")
        assert array.shape[part == "lora_a"] == 4
        update = (after[f"{name}.weight"] - before[f"{name}.weight"]).numpy()
        np.testing.assert_allclose(fused(tmp_path / "out", name), update, atol=2e-7)


@pytest.mark.parametrize(
    ("family", "block", "names"),
    [
        ("qwen3-moe", "mlp", ("gate_proj", "up_proj", "down_proj")),
        ("mixtral", "block_sparse_moe", ("w1", "w3", "w2")),
    ],
)
def test_experts_are_one_tensor(
    family: str, block: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    EXPERTS[family].build(1, seed=0).save_pretrained(tmp_path / "base")
    base = load_base_model(tmp_path / "base")
    root = f"model.layers.0.{block}"
    inner = base.spec.modules[f"lm.{root}.experts.0.{names[0]}"].shape[0]
    tensors = {}
    for part, (rows, width) in {
        "gate_proj": (inner, H),
        "up_proj": (inner, H),
        "down_proj": (H, inner),
    }.items():
        tensors[f"{root}.switch_mlp.{part}.lora_a"] = numbers(3, R, width)
        tensors[f"{root}.switch_mlp.{part}.lora_b"] = numbers(3, rows, R)
    folder = write(tmp_path / "given", tensors)
    adapter = load_adapter(folder, base.spec)
    for part, name in zip(("gate_proj", "up_proj", "down_proj"), names, strict=True):
        update = fused(folder, f"{root}.switch_mlp.{part}")
        for number in range(3):
            found = delta(adapter, f"lm.{root}.experts.{number}.{name}")
            np.testing.assert_allclose(found, update[number], atol=1e-9)
    convert_file(folder, "mlx", tmp_path / "out", tmp_path / "base")
    found = load_file(tmp_path / "out/adapters.safetensors")
    assert found.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(found[key], array)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert f"{block}.switch_mlp.up_proj" in config["lora_parameters"]["keys"]


def test_its_magnitudes_are_of_rows(pair: LanguagePair, tmp_path: Path) -> None:
    base, name = load_base_model(pair.source), "model.layers.3.self_attn.q_proj"
    a, b, m = numbers(H, R), numbers(R, 48), 1 + numbers(48)
    tensors = {f"{name}.lora_a": a, f"{name}.lora_b": b, f"{name}.m": m}
    given = load_adapter(
        write(tmp_path / "given", tensors, fine_tune_type="dora"), base.spec, structured=True
    )
    weight = pair.source_net.state_dict()[f"{name}.weight"].double().numpy()
    whole = weight + fused(tmp_path / "given", name)
    update = (m / np.linalg.norm(whole, axis=1))[:, None] * whole - weight
    found = delta(factored(given, base.spec, base.matrix), f"lm.{name}")
    np.testing.assert_allclose(found, update, atol=1e-6)
    options = MigrationOptions(method="copy", dora="keep")
    with pytest.raises(AdapterRefused, match="magnitudes for format mlx"):
        migrate_file(tmp_path / "given", pair.source, pair.target, tmp_path / "out", options)


def test_a_scale_is_not_guessed(pair: LanguagePair, tmp_path: Path) -> None:
    name = "model.layers.3.self_attn.q_proj"
    tensors = {f"{name}.lora_a": numbers(H, R), f"{name}.lora_b": numbers(R, 48)}
    folder = write(tmp_path / "given", tensors, lora_parameters={"rank": R, "alpha": 20})
    for path in (folder, folder / "adapters.safetensors"):
        with pytest.raises(AdapterRefused, match=r"lora_parameters\.scale") as refused:
            load_adapter(path)
        assert refused.value.code is Refusal.UNKNOWN_KEYS


@pytest.mark.parametrize("said", ["[]", '{"lora_parameters": 3}', "{", '"text"', "1" * 400])
def test_a_configuration_that_is_none_is_refused(said: str, tmp_path: Path) -> None:
    name = "model.layers.3.self_attn.q_proj"
    tensors = {f"{name}.lora_a": numbers(H, R), f"{name}.lora_b": numbers(R, 48)}
    folder = write(tmp_path / "given", tensors)
    (folder / "adapter_config.json").write_text(said)
    with pytest.raises(AdapterRefused, match=r"adapter_config\.json"):
        load_adapter(folder)


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    name = "model.layers.3.self_attn.q_proj"
    tensors = {f"{name}.lora_a": numbers(H, R), f"{name}.lora_b": numbers(R, 48)}
    for place, scale in enumerate((10**400, "x", float("inf"), None)):
        folder = write(tmp_path / str(place), tensors, lora_parameters={"scale": scale})
        with pytest.raises(AdapterRefused, match="scale"):
            load_adapter(folder)


def test_only_a_language_model_s_adapter_is_written_so(tmp_path: Path) -> None:
    tensors = {
        "unet.mid_block.attentions.0.proj_in.lora_A.weight": numbers(R, 1280),
        "unet.mid_block.attentions.0.proj_in.lora_B.weight": numbers(1280, R),
    }
    save_file(tensors, tmp_path / "given.safetensors")
    with pytest.raises(AdapterRefused, match="a UNet or a text encoder"):
        convert_file(tmp_path / "given.safetensors", "mlx", tmp_path / "out")
