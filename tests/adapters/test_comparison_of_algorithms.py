"""`prolora diff` of other algorithms than plain LoRA: LyCORIS's layers say what each adds."""

import json
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from builders import TINY_XL
from other_algorithms import LAYERS, XL, Made, by_lycoris, read
from safetensors.numpy import save_file

from prolora_jax.adapters.comparison import WeightsOf, compare
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.cli.main import run
from prolora_jax.errors import AdapterRefused, Refusal

PUBLISHED = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"

NEED_WEIGHTS = ("dora", "dora-of-lokr", "diag-oft", "ia3", "glora")
CASES: dict[str, dict[str, Any]] = {
    "locon": {"use_tucker": True},
    "loha": {"linear_dim": 7},  # 49 columns, of layers of width 32
    "loha-tucker": {"use_tucker": True},
    "lokr": {"factor": 4},
    "full": {},
    "dora": {"algo": "lora", "dora_wd": True},
    "dora-of-lokr": {"algo": "lokr", "dora_wd": True, "factor": 4},
    "diag-oft": {"linear_dim": 4, "conv_dim": 4},
    "ia3": {},
    "glora": {},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diff")
    builders.build_unet(TINY_XL).save_pretrained(folder / "unet")
    return folder


def written(name: str, path: Path, seed: int) -> Made:
    options = dict(CASES[name])
    made = by_lycoris(options.pop("algo", name.partition("-t")[0]), seed=seed, **options)
    save_file(made.tensors, path)
    return made


def diff(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert run(["diff", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", CASES)
def test_what_each_adds_is_compared(name, base, tmp_path, capsys):
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first, second = (written(name, file, seed) for seed, file in enumerate(files))
    found = diff(capsys, *files, "--base", base)
    assert found["modules"].keys() == first.updates.keys()
    for path, row in found["modules"].items():
        a, b = first.updates[path], second.updates[path]
        size = np.linalg.norm(a), np.linalg.norm(b)
        assert row["norm_a"] == pytest.approx(size[0], rel=1e-4)
        assert row["norm_b"] == pytest.approx(size[1], rel=1e-4)
        assert row["cosine"] == pytest.approx(np.sum(a * b) / size[0] / size[1], abs=1e-4)
        assert row["difference"] == pytest.approx(np.linalg.norm(b - a) / size[0], rel=1e-4)


def test_another_algorithm_beside_plain_lora(base, tmp_path, capsys):
    loha, lora = tmp_path / "loha.safetensors", tmp_path / "lora.safetensors"
    written("loha", loha, 0)
    words = ["--to", "lora", "--factor-rank", "exact", "--base", str(base), "--out", str(lora)]
    assert run(["convert", str(loha), *words]) == 0
    capsys.readouterr()
    found = diff(capsys, loha, lora, "--base", base)
    assert len(found["modules"]) == len(LAYERS)
    assert min(row["cosine"] for row in found["modules"].values()) > 1 - 1e-6


@pytest.mark.parametrize("name", NEED_WEIGHTS)
def test_without_the_weights_that_decide_it_is_refused(name, tmp_path):
    adapter = resolve(read(written(name, tmp_path / "a.safetensors", 0).tensors), XL)
    message = "whose update depends on the weight .*expected that base model; .*--base of convert"
    with pytest.raises(AdapterRefused, match=message) as caught:
        compare(adapter, adapter, bases=(WeightsOf(XL), WeightsOf(XL)))
    assert caught.value.code is Refusal.NEEDS_SOURCE_WEIGHTS


def test_a_migrated_file_is_held_against_the_bases_of_its_report(base, tmp_path, capsys):
    file, out = tmp_path / "dora.safetensors", tmp_path / "out.safetensors"
    written("dora", file, 0)
    words = ["--source", str(base), "--target", str(base), "--method", "copy", "--out", str(out)]
    assert run(["migrate", str(file), *words, "--factor-rank", "exact"]) == 0
    capsys.readouterr()
    found = diff(capsys, file, out)
    assert len(found["modules"]) == len(LAYERS)
    assert max(row["difference"] for row in found["modules"].values()) < 1e-5


def test_without_a_base_the_names_of_a_published_one_are_taken(tmp_path, capsys):
    file = tmp_path / "a.safetensors"
    written("lokr", file, 0)
    assert run(["diff", str(file), str(file)]) == 1
    assert "fit no published base model" in " ".join(capsys.readouterr().err.split())
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(4, 4)), rng.normal(size=(160, 160))
    tensors = {f"{PUBLISHED}.lokr_w1": w1, f"{PUBLISHED}.lokr_w2": w2}
    save_file({key: a.astype(np.float32) for key, a in tensors.items()}, file)
    (row,) = diff(capsys, file, file)["modules"].values()
    assert row["norm_a"] == pytest.approx(np.linalg.norm(np.kron(w1, w2)), rel=1e-6)
    shapes = {"lora_down.weight": (2, 640), "lora_up.weight": (640, 2), "dora_scale": (640, 1)}
    save_file({f"{PUBLISHED}.{k}": np.ones(s, np.float32) for k, s in shapes.items()}, file)
    assert run(["diff", str(file), str(file)]) == 1
    assert "needs-source-weights:DoRA" in " ".join(capsys.readouterr().err.split())
