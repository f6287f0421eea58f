"""Folders of MaxText's trainer. tests/data/maxtext.zip was written with MaxText 0.2.5 and qwix
0.1.8, by tunix's checkpoint manager, as MaxText has it save: factors alone (rank 3, alpha 6, drawn
from a generator) of a `llama3.1-8b` with scanned layers and a `qwen3-0.6b` without, both small,
whose weights are transformers' below, put into its order by MaxText's own hooks, and its own logits
with these factors. By hand its `restore_lora_from_path` has read what is written here (logits of
peft's, 8e-7); qwen2.5-7b and qwen3-0.6b scanned, and llama3.1-8b apart, were read (2e-6)."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax_trees import WIDE, arrays, base_model, logits, unpacked
from language_models import merged
from safetensors.numpy import load_file, save_file

from prolora_jax.errors import AdapterRefused, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.adapters.whole_files import compare_files, convert_file, inspect_file
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

COPY = MigrationOptions(method="copy")
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3.1": ("Llama", WIDE | {"rope_theta": 5e5}),
    "qwen3": ("Qwen3", WIDE),
}
SCANNED = "decoder/layers/{}/kernel_lora_{}/value"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints with what has to be said beside them, and their base models."""
    folder = unpacked("maxtext.zip", tmp_path_factory.mktemp("maxtext"))
    for model, (name, sizes) in MODELS.items():
        said = {"lora_alpha": 6, "model_name": f"{model}-8b"}
        (folder / model / "adapter_config.json").write_text(json.dumps(said))
        base_model(name, **sizes).save_pretrained(folder / f"{model}_base")
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_what_maxtext_answers_is_what_the_merged_model_answers(
    recorded: Path, model: str, tmp_path: Path
) -> None:
    base = recorded / f"{model}_base"
    found = migrate_file(recorded / model, base, base, tmp_path / "out", COPY)
    assert len(found.report.modules) == 14
    assert not found.report.skipped
    name, sizes = MODELS[model]
    net, wanted = base_model(name, **sizes), np.load(recorded / f"{model}_logits.npy")
    assert np.abs(wanted - logits(net)).max() > 1.0
    np.testing.assert_allclose(logits(merged(net, tmp_path / "out")), wanted, atol=1e-5)
    assert verify_file(tmp_path / "out").ok


def test_the_norm_of_a_llama_is_not_told_without_its_base_model(
    recorded: Path, tmp_path: Path
) -> None:
    found = inspect_file(recorded / "llama3.1")
    assert (found.norm, found.scales) == (None, (2.0, 2.0))
    assert found.flags[-1].startswith("scale-by-base: the scale of q")
    base = recorded / "llama3.1_base"
    convert_file(recorded / "llama3.1", "peft", tmp_path / "peft", base)
    told, wanted = inspect_file(recorded / "llama3.1", base), inspect_file(tmp_path / "peft")
    assert told.norm is not None
    assert wanted.norm is not None
    assert math.isclose(told.norm, wanted.norm, rel_tol=1e-6)
    assert inspect_file(recorded / "qwen3").norm is not None


@pytest.fixture(scope="module")
def scaled(recorded: Path) -> Path:
    """The Llama with the rotation that Llama 3.1 has, which names it."""
    folder = recorded / "llama3.1_base"
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 5e5}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_is_written_is_what_maxtext_wrote(
    recorded: Path, scaled: Path, tmp_path: Path
) -> None:
    convert_file(recorded / "llama3.1", "peft", tmp_path / "peft", scaled)
    convert_file(tmp_path / "peft", "maxtext", tmp_path / "out", scaled)
    said = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (said["model_name"], said["r"], said["lora_alpha"]) == ("llama3.1", 3, 6.0)
    theirs, ours = arrays(recorded / "llama3.1/7"), arrays(tmp_path / "out/0")
    assert theirs.keys() == ours.keys()
    for layer in ("self_attention/query", "self_attention/key", "self_attention/out", "mlp/wo"):
        both = [[t[SCANNED.format(layer, x)] for x in "ab"] for t in (theirs, ours)]
        wanted, found = (np.einsum("ilr,rlo->lio", a, b) for a, b in both)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    again = load_adapter(tmp_path / "out")
    assert len(again.modules) == 14
    with pytest.raises(UsageError, match="rows in MaxText's order.*--base"):
        compare_files(tmp_path / "out", tmp_path / "peft")


def test_a_block_without_an_update_has_zeros(recorded: Path, tmp_path: Path) -> None:
    base = recorded / "qwen3_base"
    options = MigrationOptions(method="copy", exclude=("*layers.0*", "*o_proj"))
    migrate_file(recorded / "qwen3", base, base, tmp_path / "less", options)
    convert_file(tmp_path / "less", "maxtext", tmp_path / "out", base)
    found, theirs = arrays(tmp_path / "out/0"), arrays(recorded / "qwen3/7")
    up = found[SCANNED.format("mlp/wi_1", "b")]
    assert up.shape == (3, 2, 48)
    assert not up[:, 0].any()
    scale = json.loads((tmp_path / "out/adapter_config.json").read_text())["lora_alpha"] / 3
    wanted = 2 * theirs["decoder/layers_1/mlp/wi_1/kernel_lora_b/value"]
    np.testing.assert_array_equal(scale * up[:, 1], wanted)
    assert not any("out" in place for place in found)
    before, after = (load_adapter(tmp_path / name) for name in ("less", "out"))
    assert {m.path for m in after.modules} == {m.path for m in before.modules}


def tree(*blocks: Any, root: tuple[str, ...] = ()) -> dict[str, Any]:
    found: Any = {"decoder": dict(blocks)}
    for level in reversed(root):
        found = {level: found}
    return found


def pair(a: tuple[int, ...], b: tuple[int, ...], name: str = "wi_0", block: str = "mlp") -> Any:
    one = {"kernel_lora_a": {"value": np.ones(a, np.float32)}}
    one["kernel_lora_b"] = {"value": np.ones(b, np.float32)}
    return {block: {name: one}}


def saved(folder: Path, kept: Any, said: dict[str, Any], **notes: Any) -> Path:
    with ocp.CheckpointManager(folder.absolute()) as manager:
        manager.save(
            1, args=ocp.args.Composite(items=ocp.args.PyTreeSave(kept)), custom_metadata=notes
        )
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(("model", "other"), [("llama3.1", "qwen3-8b"), ("qwen3", "llama3.1-8b")])
def test_a_model_name_that_is_not_the_base_model_s_is_refused(
    recorded: Path, model: str, other: str, tmp_path: Path
) -> None:
    shutil.copytree(recorded / model, tmp_path / "all")
    said = {"lora_alpha": 6, "model_name": other}
    (tmp_path / "all/adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(AdapterRefused, match="found a model_name of .*; correct model_name"):
        convert_file(tmp_path / "all", "peft", tmp_path / "out", recorded / f"{model}_base")


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_base_model_of_other_depth_is_refused(
    recorded: Path, blocks: int, tmp_path: Path
) -> None:
    kept = tree(("layers", pair((32, blocks, 2), (2, blocks, 48))))
    saved(tmp_path / "all", kept, {"lora_alpha": 6, "model_name": "qwen3-8b"})
    with pytest.raises(AdapterRefused, match=f"arrays of {blocks} blocks, and base .* with 2"):
        convert_file(tmp_path / "all", "peft", tmp_path / "out", recorded / "qwen3_base")


def test_blocks_in_two_kinds_of_16_bits_lie_in_one_array(recorded: Path, tmp_path: Path) -> None:
    base, file = recorded / "qwen3_base", tmp_path / "peft/adapter_model.safetensors"
    convert_file(recorded / "qwen3", "peft", tmp_path / "peft", base)
    halves = {
        key: array.astype(np.float16 if ".0." in key else ml_dtypes.bfloat16)
        for key, array in load_file(file).items()
    }
    save_file(halves, file)
    convert_file(tmp_path / "peft", "maxtext", tmp_path / "out", base)
    up = arrays(tmp_path / "out/0")[SCANNED.format("mlp/wo", "b")]
    for block in (0, 1):
        key = f"base_model.model.model.layers.{block}.mlp.down_proj.lora_B.weight"
        np.testing.assert_array_equal(up[:, block], halves[key].astype(np.float32).T)


LLAMA = {"model_name": "llama3.1-8b", "lora_alpha": 4}
LINEAR = pair((8, 2), (2, 6))
SCAN, FEWER = pair((8, 3, 2), (2, 3, 6)), pair((8, 4, 2), (2, 4, 6), "wi_1")


def test_notes_of_its_own_trainer_say_the_alpha_and_moments_are_no_factors(tmp_path: Path) -> None:
    kept = tree(("layers", pair((8, 3, 2), (2, 3, 6))), root=("params", "params"))
    kept["opt_state"] = {"mu": kept["params"]}
    said = {"model_name": "qwen3-0.6b"}
    adapter = load_adapter(saved(tmp_path / "all", kept, said, lora={"lora_alpha": 6.0}))
    assert [m.path for m in adapter.modules] == [
        f"lm.model.layers.{i}.mlp.gate_proj" for i in "012"
    ]
    assert {(m.scale, m.down.shape, m.up.shape) for m in adapter.modules} == {(3.0, (2, 8), (6, 2))}


def test_blocks_may_be_counted_by_the_first_axis(tmp_path: Path) -> None:
    kept = tree(("layers", pair((3, 8, 2), (3, 2, 6))))
    adapter = load_adapter(saved(tmp_path / "all", kept, {**LLAMA, "model_name": "qwen3-8b"}))
    assert {(m.down.shape, m.up.shape) for m in adapter.modules} == {((2, 8), (6, 2))}


@pytest.mark.parametrize(
    ("kept", "said", "words"),
    [
        (tree(("layers_0", LINEAR)), {"lora_alpha": 4}, "nowhere which of its models"),
        (tree(("layers_0", LINEAR)), LLAMA | {"model_name": "gemma3-4b"}, "model_name 'gemma3-4b'"),
        (tree(("layers_0", LINEAR)), LLAMA | {"model_name": "qwen3-vl-2b"}, "llama3.1-\\*, qwen2"),
        (tree(("layers_0", LINEAR)), {"model_name": "qwen3-8b"}, "nowhere the alpha"),
        (tree(("layers_0", pair((8, 2), (3, 6)))), LLAMA, "in shapes .* expected \\(in, rank\\)"),
        (tree(("layers", pair((2, 2, 2), (2, 2, 6)))), LLAMA, "expected \\(in, blocks, rank\\)"),
        (tree(("layers", pair((8, 2), (2, 6)))), LLAMA, "expected \\(in, blocks, rank\\)"),
        (tree(("layers_0", pair((8, 2), (2, 6), "gate", "moe_block"))), LLAMA, "moe_block.gate"),
        (tree(("layers", SCAN), ("layers_0", LINEAR)), LLAMA, "array of all blocks and in one of"),
        (tree(("layers", {"mlp": SCAN["mlp"] | FEWER["mlp"]})), LLAMA, "arrays of . and of . blo"),
        (tree(("scanned_blocks", LINEAR)), LLAMA, "scanned_blocks.mlp.*expected query, key"),
    ],
)
def test_what_is_not_known_exactly_is_refused(
    kept: Any, said: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRefused, match=words):
        load_adapter(saved(tmp_path / "all", kept, said))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope_parameters": {"rope_type": "default"}}, "llama with rotation default; expected"),
        ({"model_type": "mistral"}, "mistral with rotation llama3"),
        ({"num_attention_heads": None}, "no config.json with a number of heads"),
        (
            {"num_attention_heads": 8, "num_key_value_heads": 4},
            r"4 heads of keys .*, each of 12 channels \(head_dim\), and 24 in .*expected 48; give",
        ),
        ({"num_attention_heads": 8}, r"8 heads of queries .* and 48 in .*expected 96"),
        ({"head_dim": None}, r"each of 8 channels \(hidden_size over heads, without head_dim\)"),
    ],
)
def test_a_base_model_whose_rows_are_not_known_is_refused(
    recorded: Path, scaled: Path, config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    convert_file(recorded / "llama3.1", "peft", tmp_path / "peft", scaled)
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").symlink_to(scaled / "model.safetensors")
    said = json.loads((scaled / "config.json").read_text()) | config
    (base / "config.json").write_text(json.dumps(said))
    with pytest.raises(AdapterRefused, match=words):
        convert_file(tmp_path / "peft", "maxtext", tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_norms_of_heads_tell_that_a_configuration_is_another_model_s(
    recorded: Path, tmp_path: Path
) -> None:
    given, base = recorded / "qwen3_base", tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").symlink_to(given / "model.safetensors")
    twice = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6}
    said = json.loads((given / "config.json").read_text()) | twice
    (base / "config.json").write_text(json.dumps(said))
    with pytest.raises(AdapterRefused, match=r"heads of .*, each of 12 channels \([qk]_norm\)"):
        convert_file(recorded / "qwen3", "tunix", tmp_path / "out", base)
    convert_file(recorded / "qwen3", "peft", tmp_path / "peft", base)  # heads say nothing there


def test_rows_in_pairs_need_a_number_of_heads(recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    weights = recorded / "llama3.1_base/model.safetensors"
    (tmp_path / "base/model.safetensors").symlink_to(weights)
    with pytest.raises(AdapterRefused, match="rows in MaxText's order in .*does not say how many"):
        convert_file(recorded / "llama3.1", "peft", tmp_path / "out", tmp_path / "base")


def test_q_is_divided_by_the_root_of_a_head_s_size(recorded: Path, tmp_path: Path) -> None:
    base = recorded / "llama3.1_base"
    convert_file(recorded / "llama3.1", "peft", tmp_path / "out", base)
    scales = {m.path.rpartition(".")[2]: m.scale for m in load_adapter(tmp_path / "out").modules}
    assert math.isclose(scales["q_proj"], 2 * math.sqrt(12))
    assert scales["k_proj"] == scales["o_proj"] == 2.0
