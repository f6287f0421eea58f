"""`prolora generate` with other algorithms than plain LoRA: peft merges, the same base draws."""

import json
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import tiny_pipelines
import torch
import unets
from numpy.testing import assert_allclose
from peft import LoHaConfig, LoraConfig, OFTConfig, get_peft_model
from PIL import Image
from rich.console import Console
from tiny_pipelines import PROMPTS, SHORT

import prolora_jax as pl
from prolora_jax.adapters.adapter import delta
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.adapters.algorithms.factoring import kept_share
from prolora_jax.adapters.fitting import fit
from prolora_jax.cli.generate import show_columns
from prolora_jax.cli.main import run
from prolora_jax.evaluation.side_by_side import SideBySide

pytestmark = pytest.mark.usefixtures("little_optimized")

CONFIGS: dict[str, Any] = {
    "loha": LoHaConfig(r=2, alpha=2, target_modules=["to_q", "to_v", "conv1"]),
    "dora": LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["to_q", "to_k"]),
    "oft": OFTConfig(oft_block_size=4, target_modules=["to_out.0", "proj_in"]),
}


class Files(NamedTuple):
    source: Path
    base: Path
    adapters: tuple[Path, ...]
    by_peft: dict[str, Path]


def updates(net: Any, folder: Path, *, save: bool) -> dict[str, torch.Tensor]:
    """What peft's merging adds to the weights of a net, summed over the adapters."""
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    found = {name: torch.zeros_like(weight) for name, weight in before.items()}
    for seed, (kind, config) in enumerate(CONFIGS.items()):
        one = unets.torch_net(SHORT["vega"])
        one.load_state_dict(before)
        model: Any = get_peft_model(one, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.requires_grad and "magnitude" in name:
                    weight.mul_(1.3)
                elif weight.requires_grad:
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        if save:
            model.save_pretrained(str(folder / kind))
        merged = model.merge_and_unload().state_dict()
        for name in found:
            found[name] += merged[name] - before[name]
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Two pipelines, three adapters of the first, and pipelines with what peft adds to either."""
    folder = tmp_path_factory.mktemp("generate")
    pipe = tiny_pipelines.make_pipeline(folder / "source", "vega", short=True)
    own = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    tuned = {
        name: w + 0.1 * w.std() * torch.randn(w.shape, generator=generator) if w.ndim > 1 else w
        for name, w in own.items()
    }
    adds = updates(pipe.unet, folder, save=True)
    pipe.unet.load_state_dict(tuned)
    pipe.save_pretrained(folder / "tuned")
    by_peft = {
        "source": (own, adds),
        "lora": (tuned, updates(pipe.unet, folder, save=False)),
        "copy": (tuned, adds),
    }
    for arm, (weights, added) in by_peft.items():
        pipe.unet.load_state_dict({name: w + added[name] for name, w in weights.items()})
        pipe.save_pretrained(folder / f"{arm} merged")
    adapters = tuple(folder / kind for kind in CONFIGS)
    places = {arm: folder / f"{arm} merged" for arm in by_peft}
    return Files(folder / "source", folder / "tuned", adapters, places)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, files: Files):
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=unets.QUICK))
    monkeypatch.setenv("PROLORA_STORE", str(files.source.parent / "store"))


def cells(out: Path, columns: int) -> np.ndarray:
    """The pictures of a sheet of one row, `(columns, 16, 16, 3)`, each shown 8 times as large."""
    sheet = np.asarray(Image.open(out).convert("RGB"))
    top, left = sheet.shape[0] - 132, sheet.shape[1] - columns * 132
    found = [sheet[top : top + 128, left + c * 132 :][:, :128][::8, ::8] for c in range(columns)]
    return np.stack(found) / 255


def test_every_column_is_what_peft_merges(files, tmp_path, capsys):
    out = tmp_path / "all.png"
    words = ["--base", str(files.base), "--source", str(files.source), "--steps", "2", "-q"]
    words += ["--arms", ",".join([*files.by_peft, "none"]), "--prompt", PROMPTS[0], "--json"]
    words += [word for adapter in files.adapters for word in ("--lora", str(adapter))]
    words += ["--migrate.factor-rank", "exact", "--out", str(out)]
    assert run(["generate", *words]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["kept"] == {arm: [pytest.approx(1.0)] * 3 for arm in ("lora", "source")}
    found = cells(out, 4)
    pipeline, _ = pl.load_pipeline(files.base)
    how: Any = {"steps": 2, "guidance": 5.0, "size": (16, 16)}
    for column, (arm, merged) in enumerate(files.by_peft.items()):
        _, params = pl.load_pipeline(merged)
        want = pl.generate(pipeline, params, PROMPTS[:1], [0], **how)[0, 0]
        assert_allclose(found[column], want, rtol=0, atol=0.003, err_msg=arm)
        assert np.abs(found[column] - found[3]).max() > 0.03


def test_a_share_of_an_update_is_said(files):
    base = pl.load_base_model(files.source)
    adapter = pl.load_adapter(files.adapters[2], structured=True)
    cut, whole = (
        fit(adapter, base.spec, matrix=base.matrix, factor_rank=FactorRank(1.0, most)).adapter
        for most in (2, None)
    )
    sizes = [sum(np.sum(delta(a, m.path) ** 2) for m in a.modules) for a in (cut, whole)]
    share = float(sizes[0] / sizes[1])
    assert kept_share(cut) == pytest.approx(share, rel=1e-5)
    assert kept_share(whole) == pytest.approx(1.0)
    console = Console(file=StringIO(), width=200)
    pictures = np.zeros((1, 8, 8, 3), np.float32)
    shares = {"lora": [kept_share(cut), kept_share(whole)]}
    show_columns(console, SideBySide({"none": pictures, "lora": pictures}, {}, kept=shares))
    assert isinstance(console.file, StringIO)
    assert f" {share:.1%} of the update " in console.file.getvalue()
    assert "100" not in console.file.getvalue()
