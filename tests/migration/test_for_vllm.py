"""Folders for vLLM: what it makes of them, by its own rule written in NumPy, and what peft does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from language_models import LanguagePair, make_language_pair, merged
from safetensors.numpy import load_file

from prolora_jax.adapters.formats.vllm import RANKS, NotForVllm, max_lora_rank
from prolora_jax.cli.main import run
from prolora_jax.errors import UsageError
from prolora_jax.io.adapters.whole_files import convert_file
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

FOR_VLLM = Writing(format="peft", reader="vllm")
PATTERNS = {
    "use_rslora": True,
    "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp.*": 2},
    "alpha_pattern": {"down_proj": 5, "layers.0.mlp.up_proj": -2},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    return make_language_pair(tmp_path_factory.mktemp("vllm"), "llama", **PATTERNS)


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    config = json.loads((folder / "adapter_config.json").read_text())
    return load_file(folder / "adapter_model.safetensors"), config


def by_vllm(folder: Path) -> dict[str, np.ndarray]:
    """One scale for all, `lora_alpha / r`; no other field is looked at."""
    tensors, config = read(folder)
    assert {key.rpartition(".lora_")[2] for key in tensors} == {"A.weight", "B.weight"}
    scale, found = config["lora_alpha"] / config["r"], {}
    for key in (key for key in tensors if ".lora_A." in key):
        a, b = tensors[key], tensors[key.replace("lora_A", "lora_B")]
        assert a.shape[0] == b.shape[1] == config["r"]
        name = key.removeprefix("base_model.model.").replace("lora_A.", "")
        found[name] = scale * b.astype(np.float64) @ a
    return found


def by_peft(net: Any, adapter: Path) -> dict[str, np.ndarray]:
    before, after = net.state_dict(), merged(net, adapter).state_dict()
    found = {key: (after[key] - before[key]).numpy() for key in before}
    return {key: update for key, update in found.items() if update.any()}


def test_its_one_scale_gives_what_peft_s_patterns_give(pair: LanguagePair, tmp_path: Path) -> None:
    assert migrate_file(
        *(pair.adapter, pair.source, pair.target, tmp_path / "out"),
        MigrationOptions(method="copy", uniform_rank=True),
        FOR_VLLM,
    ).report.modules
    given, found = by_peft(pair.source_net, pair.adapter), by_vllm(tmp_path / "out")
    assert len(found) == 7 * 3
    for name, update in found.items():
        np.testing.assert_allclose(update, given[pair.source_name(name)], atol=2e-7)
    for name, update in by_peft(pair.target_net, tmp_path / "out").items():
        np.testing.assert_allclose(update, found[name], atol=2e-7)
    _, config = read(tmp_path / "out")
    assert config["lora_alpha"] == config["r"] == 4
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert config["target_modules"] == sorted(names)
    assert verify_file(tmp_path / "out").ok


def test_a_conversion_says_what_a_server_is_started_with(
    pair: LanguagePair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["convert", str(pair.adapter), "--to", "same", "--for", "vllm", "--out", str(out)]
    assert run([*words, "--base", str(pair.source)]) == 0
    assert "--max-lora-rank 8" in capsys.readouterr().out
    given = by_peft(pair.source_net, pair.adapter)
    for name, update in by_vllm(out).items():
        np.testing.assert_allclose(update, given[name], atol=2e-7)


def test_names_are_short_only_where_all_layers_that_end_so_are_adapted(tmp_path: Path) -> None:
    pair = make_language_pair(tmp_path, "llama", layers_to_transform=[0, 2, 3])
    migrate_file(
        *(pair.adapter, pair.source, pair.source, tmp_path / "out"),
        MigrationOptions(method="copy", uniform_rank=True, exclude=("*.0.*q_proj",)),
        FOR_VLLM,
    )
    names = read(tmp_path / "out")[1]["target_modules"]
    assert "q_proj" not in names
    assert {n for n in names if n.endswith("q_proj")} == {
        f"model.layers.{n}.self_attn.q_proj" for n in (2, 3)
    }
    assert "model.layers.2.mlp.up_proj" in names


@pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape")  # peft of a factor's bias
@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"use_dora": True}, "a module of dora"),
        ({"lora_bias": True}, "beside the pairs: bias"),
        ({"target_modules": ["embed_tokens"]}, "the pair of an embedding"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3]}, "beside the pairs: rows"),
    ],
    ids=str,
)
def test_what_it_does_not_read_is_refused(
    fields: dict[str, Any], found: str, tmp_path: Path
) -> None:
    family = "qwen2" if "lora_bias" in fields else "mistral"
    layers = {"layers": ("q_proj",)} if "lora_bias" in fields else {}
    pair = make_language_pair(tmp_path, family, depth=1, kept=(0,), **layers, **fields)
    options = MigrationOptions(method="copy", uniform_rank=True, dora="keep")
    with pytest.raises(NotForVllm, match=found):
        migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", options, FOR_VLLM)
    assert not (tmp_path / "out").exists()


def test_it_reads_folders_of_peft_alone(pair: LanguagePair, tmp_path: Path) -> None:
    for out, to in (("out.safetensors", "peft"), ("out", "kohya")):
        with pytest.raises(UsageError, match="expected a folder of peft"):
            convert_file(pair.adapter, to, tmp_path / out, pair.source, reader="vllm")


def test_ranks_of_servers() -> None:
    assert [max_lora_rank([rank]) for rank in (1, 8, 9, 257, 512)] == [8, 8, 16, 320, 512]
    assert max_lora_rank([513]) is None
    assert RANKS[-1] == 512
