"""Folders of tunix's trainer. tests/data/tunix.zip was written by google-tunix 0.1.7 with qwix
0.1.8: checkpoints of factors alone (rank 3, alpha 6, drawn from a generator) for a base model with
the weights below, and its own logits with these factors. By hand its `maybe_restore` has read what
is written here: logits of peft's for Qwen 3 (9e-7) and Llama 3 (6e-7), of an adapter some of whose
layers had a rank and an alpha of their own."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax_trees import WIDE, arrays, base_model, logits, unpacked
from language_models import make_language_pair, merged
from safetensors.numpy import load_file, save_file

from prolora_jax.adapters.adapter import delta
from prolora_jax.adapters.formats.keys import PEFT_WRAPPER
from prolora_jax.catalog.catalog import run_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.errors import AdapterRefused, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.adapters.inputs import expand
from prolora_jax.io.adapters.whole_files import convert_file
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

COPY = MigrationOptions(method="copy")
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("Llama", WIDE),
    "qwen3": ("Qwen3", WIDE),
    "qwen2": ("Qwen2", {"hidden_size": 48, "rope_theta": 1e4}),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints, with the alpha that they were written for beside each."""
    folder = unpacked("tunix.zip", tmp_path_factory.mktemp("tunix"))
    for family in FAMILIES:
        (folder / family / "adapter_config.json").write_text('{"lora_alpha": 6}')
    return folder


def base_of(family: str) -> Any:
    """The model that the factors were recorded with."""
    name, sizes = FAMILIES[family]
    return base_model(name, **sizes)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_tunix_answers_is_what_the_merged_model_answers(
    recorded: Path, family: str, tmp_path: Path
) -> None:
    net = base_of(family)
    net.save_pretrained(tmp_path / "base")
    found = migrate_file(
        recorded / family, tmp_path / "base", tmp_path / "base", tmp_path / "out", COPY
    )
    assert len(found.report.modules) == 14
    assert not found.report.skipped
    wanted = np.load(recorded / f"{family}_logits.npy")
    assert np.abs(wanted - logits(net)).max() > 1.0
    np.testing.assert_allclose(logits(merged(net, tmp_path / "out")), wanted, atol=1e-5)
    assert verify_file(tmp_path / "out").ok


@pytest.mark.parametrize("family", ["llama3", "qwen2"])
def test_what_is_written_is_what_tunix_wrote(recorded: Path, family: str, tmp_path: Path) -> None:
    base_of(family).save_pretrained(tmp_path / "base")
    convert_file(recorded / family, "peft", tmp_path / "peft", tmp_path / "base")
    convert_file(tmp_path / "peft", "tunix", tmp_path / "out", tmp_path / "base")
    theirs, ours = arrays(recorded / f"{family}/7"), arrays(tmp_path / "out/0")
    assert theirs.keys() == ours.keys()
    for place, wanted in theirs.items():
        np.testing.assert_array_equal(ours[place], wanted)
    said = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"]) == (3, 6.0)
    convert_file(tmp_path / "out", "peft", tmp_path / "again", tmp_path / "base")
    scales = {module.scale for module in load_adapter(tmp_path / "again").modules}
    assert scales == {2.0}


def test_one_rank_and_one_alpha_are_written_and_a_licence_is_kept(tmp_path: Path) -> None:
    ranks, alphas = {"o_proj": 2}, {"down_proj": 5}
    pair = make_language_pair(tmp_path, "qwen3", rank_pattern=ranks, alpha_pattern=alphas)
    licensed = {"license": "apache-2.0"}
    folder = pair.adapter / "adapter_model.safetensors"
    save_file(load_file(folder), folder, licensed)
    convert_file(pair.adapter, "tunix", tmp_path / "out", pair.source)
    convert_file(tmp_path / "out", "peft", tmp_path / "again", pair.source)
    before, after = load_adapter(pair.adapter), load_adapter(tmp_path / "again")
    assert after.metadata["license"] == "apache-2.0"
    assert len(set(before.ranks)) > len(set(after.ranks)) == 1
    for module in before.modules:
        made, wanted = (delta(adapter, module.path) for adapter in (after, before))
        np.testing.assert_allclose(made, wanted, atol=1e-6)
    with pytest.raises(UsageError, match="output exists"):
        convert_file(pair.adapter, "tunix", tmp_path / "out", pair.source)
    convert_file(pair.adapter, "tunix", tmp_path / "out", pair.source, overwrite=True)
    assert len(load_adapter(tmp_path / "out").modules) == len(before.modules)


def test_what_tunix_has_no_name_for_is_not_written(tmp_path: Path) -> None:
    other = make_language_pair(tmp_path / "other", "mistral")
    with pytest.raises(AdapterRefused, match="mistral with rotation .*; expected Llama 3, Qwen 2"):
        convert_file(other.adapter, "tunix", tmp_path / "out", other.source)
    pair = make_language_pair(tmp_path, "qwen3", layers=("q_proj",))
    said = json.loads((pair.source / "config.json").read_text())
    (pair.source / "config.json").write_text(json.dumps(said | {"num_attention_heads": 5}))
    with pytest.raises(
        AdapterRefused, match=r"found 5 heads of queries .* and 48 in .*expected 60"
    ):
        convert_file(pair.adapter, "tunix", tmp_path / "out", pair.source)
    (pair.source / "config.json").write_text(json.dumps(said))
    file = pair.adapter / "adapter_model.safetensors"
    head = f"{PEFT_WRAPPER}lm_head.lora_"
    a, b = np.ones((4, said["hidden_size"])), np.ones((said["vocab_size"], 4))
    found = {f"{head}A.weight": a.astype(np.float32), f"{head}B.weight": b.astype(np.float32)}
    save_file(load_file(file) | found, file)
    with pytest.raises(
        AdapterRefused, match=r"lm_head, which tunix has no .*--exclude '\*lm_head'"
    ):
        convert_file(pair.adapter, "tunix", tmp_path / "out", pair.source)


@pytest.mark.parametrize(
    ("steps", "format", "words"),
    [
        (("0", "7"), "tunix", "found a checkpoint, step 0, 7; expected a new name"),
        (("0",), "peft", "found a checkpoint, step 0; expected a new name"),
        (("0",), "tunix", "would replace .*, which is read for it"),
    ],
)
def test_no_step_of_a_training_is_replaced_or_hides_an_output(
    recorded: Path, steps: tuple[str, ...], format: str, words: str, tmp_path: Path
) -> None:
    base_of("qwen3").save_pretrained(tmp_path / "base")
    for step in steps:
        shutil.copytree(recorded / "qwen3/7", tmp_path / "run" / step)
    (tmp_path / "run" / steps[-1] / "adapter_config.json").write_text('{"lora_alpha": 6}')
    given = tmp_path / "run" if words.startswith("would") else recorded / "qwen3"
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=words):
            convert_file(given, format, tmp_path / "run", tmp_path / "base", overwrite=overwrite)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("inside", [".", "7", "7/model_params"])
def test_each_level_of_a_checkpoint_manager_s_folder_is_read(
    recorded: Path, inside: str, tmp_path: Path
) -> None:
    shutil.copytree(recorded / "qwen3", tmp_path / "all")
    (tmp_path / "all/adapter_config.json").rename(tmp_path / "all" / inside / "adapter_config.json")
    adapter = load_adapter(tmp_path / "all" / inside)
    assert len(adapter.modules) == 14
    assert {module.scale for module in adapter.modules} == {2.0}


def test_a_catalog_takes_such_a_folder(recorded: Path, tmp_path: Path) -> None:
    net = base_of("qwen3")
    net.save_pretrained(tmp_path / "base")
    shutil.copytree(recorded / "qwen3", tmp_path / "many/one")
    job = CatalogJob((tmp_path / "many",), tmp_path / "out", COPY)
    run_catalog(job, open_pair(tmp_path / "base", tmp_path / "base"))
    wanted = np.load(recorded / "qwen3_logits.npy")
    np.testing.assert_allclose(logits(merged(net, tmp_path / "out/one")), wanted, atol=1e-5)


def test_a_catalog_sees_a_tree_that_was_trained_again_and_an_output_that_lost_its_arrays(
    tmp_path: Path,
) -> None:
    base_of("qwen3").save_pretrained(tmp_path / "base")
    pair = open_pair(tmp_path / "base", tmp_path / "base")
    job = CatalogJob((tmp_path / "many",), tmp_path / "out", COPY, Writing(format="tunix"))
    fit = layer("mlp", "up_proj", "kernel", (32, 2), (2, 48))
    (tmp_path / "many").mkdir()
    save_tree(tmp_path / "many/one", fit)
    run_catalog(job, pair)
    place = "layers/0/mlp/up_proj/kernel_lora_b/value"
    assert (arrays(tmp_path / "out/one/0")[place] == 2).all()
    shutil.rmtree(tmp_path / "many/one/1")
    fit["layers"]["0"]["mlp"]["up_proj"]["kernel_lora_b"]["value"][:] = 3
    save_tree(tmp_path / "many/one", fit)
    run_catalog(job, pair)
    assert (arrays(tmp_path / "out/one/0")[place] == 6).all()
    (data,) = [f for f in (tmp_path / "out/one/0/model_params/d").iterdir() if f.is_file()]
    data.unlink()
    run_catalog(job, pair)
    assert (arrays(tmp_path / "out/one/0")[place] == 6).all()


@pytest.mark.parametrize("step", ["7", "."])
def test_a_folder_as_its_trainer_left_it_is_told_what_it_lacks(
    recorded: Path, step: str, tmp_path: Path
) -> None:
    for item in ("model_params", "optimizer_state"):
        given = recorded / "qwen3/7/model_params"
        shutil.copytree(given, tmp_path / "many/one" / step / item)
    (found,) = expand([tmp_path / "many"])
    assert (found.relative, found.refusal) == (Path("one"), None)
    assert expand([found.path]) == [found]
    with pytest.raises(AdapterRefused, match="nowhere the alpha"):
        load_adapter(found.path)


def test_trees_beside_each_other_are_several_adapters(recorded: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "model_params"):
        shutil.copytree(recorded / "qwen3/7/model_params", tmp_path / name)
    save_file({"x": np.ones(1, np.float32)}, tmp_path / "three.safetensors")
    names = [item.path.name for item in expand([tmp_path])]
    assert names == ["model_params", "one", "three.safetensors", "two"]


def test_a_step_that_has_lost_a_part_does_not_hide_an_older_one(
    recorded: Path, tmp_path: Path
) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    base_of("qwen3").save_pretrained(base)
    shutil.copytree(recorded / "qwen3", run)
    shutil.copytree(run / "7", run / "12")
    for file in (run / "12/model_params/d").iterdir():
        file.unlink()
    found = migrate_file(run, base, base, tmp_path / "out", COPY)
    left = "found step 12, which is not whole or has nothing to read; step 7 is read"
    assert f"newest-step-left: {left}" in found.report.flags
    assert len(found.report.modules) == 14
    assert verify_file(tmp_path / "out").ok
    shutil.rmtree(run / "7")
    with pytest.raises(AdapterRefused, match="12/model_params: its arrays cannot be read"):
        load_adapter(run)


def save_tree(folder: Path, tree: Any, config: Any = None) -> Path:
    """A step of orbax's own manager, as tunix has it save."""
    with ocp.CheckpointManager(folder.absolute()) as manager:
        manager.save(1, args=ocp.args.Composite(model_params=ocp.args.PyTreeSave(tree)))
    text = json.dumps({"lora_alpha": 4} if config is None else config)
    (folder / "adapter_config.json").write_text(text)
    return folder


def factors(*shapes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.ones(shape, np.float32) for shape in shapes)


def layer(block: str, name: str, weight: str, *shapes: tuple[int, ...]) -> dict[str, Any]:
    a, b = factors(*shapes)
    pair = {f"{weight}_lora_a": {"value": a}, f"{weight}_lora_b": {"value": b}}
    return {"layers": {"0": {block: {name: pair}}}}


LINEAR = layer("mlp", "up_proj", "kernel", (8, 2), (2, 6))
EINSUM = layer("attn", "q_einsum", "w", (2, 8, 2), (2, 4))
FLAT = layer("attn", "q_proj", "w", (8, 2), (2, 8))
TWICE = layer("mlp", "up_proj", "kernel", (8, 2), (2, 6))
TWICE["layers"]["0"]["mlp"]["up_proj.kernel_lora_a"] = np.ones((8, 2), np.float32)
UNLIKE = {"layers": {"0": {**LINEAR["layers"]["0"]}, "1": {"mlp": {}}}}
UNLIKE["layers"]["1"] = layer("mlp", "up_proj", "kernel", (8, 3), (3, 6))["layers"]["0"]


@pytest.mark.parametrize(
    ("tree", "config", "words"),
    [
        (LINEAR, {"r": 2}, "nowhere the alpha that they were trained with; expected lora_alpha"),
        (LINEAR, {"lora_alpha": True}, "nowhere the alpha"),
        (LINEAR, [], "nowhere the alpha"),
        (LINEAR, {"lora_alpha": 4, "r": 3}, "found r 3 in adapter_config.json; expected 2"),
        (EINSUM, None, r"found a factor at layers.0.attn.q_einsum.w_lora_a; expected layers of"),
        (FLAT, None, r"q_proj: found a factor b in shape \(2, 8\); expected 3 axes"),
        (TWICE, None, r"up_proj: found a factor a at .*kernel_lora_a(\.value)? and at"),
        (UNLIKE, None, "found ranks 2, 3; expected one rank"),
    ],
)
def test_what_is_not_known_exactly_is_refused(
    tree: Any, config: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRefused, match=words):
        load_adapter(save_tree(tmp_path / "all", tree, config))


@pytest.mark.parametrize("shape", [[8, 0], [0, 2], [2**20, 2**20], [8], [1] * 5])
def test_a_factor_is_refused_by_its_shape_before_it_is_read(
    shape: list[int], tmp_path: Path
) -> None:
    listed = {}
    for side, sizes in (("a", shape), ("b", [2, 6])):
        place = ["layers", "0", "mlp", "up_proj", f"kernel_lora_{side}"]
        array = {"zarr_format": 2, "shape": sizes, "chunks": [max(n, 1) for n in sizes]}
        array |= {"dtype": "<f4", "fill_value": 0.0, "compressor": None, "filters": None}
        (tmp_path / ".".join(place)).mkdir()
        file = tmp_path / ".".join(place) / ".zarray"
        file.write_text(json.dumps(array | {"order": "C"}))
        keys = [{"key": key, "key_type": 2} for key in place]
        value = {"value_type": "jax.Array"}
        listed[side] = {"key_metadata": keys, "value_metadata": value}
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": listed}))
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 4}')
    with pytest.raises(AdapterRefused, match=r"up_proj: found a factor a in shape \("):
        load_adapter(tmp_path)


def test_the_base_model_s_own_weights_beside_the_factors_are_passed_over(tmp_path: Path) -> None:
    tree = {**LINEAR, "embedder": {"input_embedding": {"value": np.ones((5, 8), np.float32)}}}
    (module,) = load_adapter(save_tree(tmp_path / "all", tree)).modules
    assert module.scale == 2.0
    assert (module.up.shape, module.down.shape) == ((6, 2), (2, 8))
    (tmp_path / "alone").mkdir()
    alone = save_tree(tmp_path / "alone", {"embedder": tree["embedder"]})
    with pytest.raises(AdapterRefused, match="found arrays that orbax wrote, and no factors"):
        load_adapter(alone)


def test_a_damaged_tree_is_refused(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded / "qwen2", tmp_path / "all")
    for file in (tmp_path / "all/7/model_params").rglob("manifest.ocdbt"):
        file.write_bytes(b"")
    with pytest.raises(AdapterRefused, match="its arrays cannot be read"):
        load_adapter(tmp_path / "all")
