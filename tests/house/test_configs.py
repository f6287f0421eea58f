"""Each job file of configs/ runs by the command it is headed by, here on small models."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from toy_pair import SOURCE

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.unet.table import UNetTensors, unet_table
from prolora_jax.cli.main import run
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.containers.tensors import write_tensors

FOLDER = Path(__file__).resolve().parents[2] / "configs"
VEGA = replace(
    SOURCE,
    down_depths=(0, (1, 1), (2, 2)),
    mid="resnet",
    up_depths=((2, 2, 2), (1, 1, 1), 0),
)
SSD = replace(VEGA, down_depths=(0, (2, 2), (4, 4)), up_depths=((4, 4, 5), (2, 1, 1), 0))
SD15 = UNetTensors((16, 32, 48, 48), (1, 1, 1, 0), (0, 1, 1, 1), cross_attention_dim=24)
BK_SMALL = replace(SD15, layers_per_block=1, mid=None)
PAIRS = {
    "sdxl-to-ssd-1b": (SOURCE, SSD),
    "sdxl-to-vega": (SOURCE, VEGA),
    "sd15-to-bk-sdm-small": (SD15, BK_SMALL),
    "sdxl-to-fine-tune": (SOURCE, SOURCE),
}


def net(folder: Path, config: UNetTensors, of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A net whose weights are, where there are such, nearly those of another."""
    rng = np.random.default_rng(len(of))
    tensors = {}
    for key, shape in unet_table(config).items():
        own = rng.normal(size=shape)
        near = of.get(key)
        tensors[key] = own if near is None or near.shape != shape else near + 0.02 * own
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    write_tensors(file, {key: array.astype(np.float32) for key, array in tensors.items()})
    return tensors


def test_every_job_is_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_the_command_of_its_head(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    job = FOLDER / f"{name}.yaml"
    program, *command = shlex.split(job.read_text().splitlines()[0].removeprefix("# "))
    assert program == "prolora"
    source, target = PAIRS[name]
    net(tmp_path / "target", target, net(tmp_path / "source", source, {}))
    spec, rng = spec_from_config(source, name=name), np.random.default_rng(1)
    modules = [
        LoraModule(m.path, rng.normal(size=(4, m.shape[1])), rng.normal(size=(m.shape[0], 4)), 4.0)
        for m in spec.modules.values()
        if m.kind_is("attn")
    ]
    wide = Adapter(tuple(modules), "kohya-diffusers")
    save_adapter(wide, tmp_path / "loras" / "a.safetensors", base=spec)
    (tmp_path / "loras" / "a.txt").write_text("trigger words")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(FOLDER)
    small = ["--source", "source", "--target", "target", "--store", "store", "-q"]
    assert run([*command, *small]) == 0, capsys.readouterr()
    out = Path(command[command.index("--out") + 1])
    moved = load_adapter(out / "a.safetensors")
    assert len(moved.modules) > 5
    options = yaml.safe_load(job.read_text())
    assert (out / "a.txt").read_text() == "trigger words"
    assert Path(options["report"]).read_text().count("<rect") > 20
    assert {"source", "target"} < options.keys()
    if options.get("format") == "kohya":
        assert moved.format == "kohya-diffusers"
    assert run(["verify", str(out), "--all", "-q", "--store", "store"]) == 0


PROLORA = """#!/bin/sh
trap 'echo stopped; exit 0' TERM
echo started
[ "$STOPPED" ] || exit 1
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("stopped", ["", "yes"])
def test_a_pod_that_is_stopped_does_not_pass_for_done(tmp_path: Path, stopped: str):
    """The command of the JobSet, over a program that says of either what prolora says."""
    text = (FOLDER / "fleet" / "jobset.yaml").read_text()
    (parts,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    (pod,) = parts["template"]["spec"]["template"]["spec"]["containers"]
    (tmp_path / "prolora").write_text(PROLORA)
    (tmp_path / "prolora").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [*pod["command"], *pod["args"]],
        env={"PATH": path, "JOB_COMPLETION_INDEX": "3", "STOPPED": stopped},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    if stopped:
        # Heard by the shell alone.
        process.terminate()
    said, _ = process.communicate(timeout=20)
    assert (process.returncode, said) == ((143, "stopped\n") if stopped else (1, ""))
