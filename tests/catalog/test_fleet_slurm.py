"""The Slurm array of `configs/fleet/` on a real Slurm of three nodes, one of which is killed."""

import os
import re
import sys
from pathlib import Path

import fleet_workers
import pytest
from slurm import slurm
from small_adapters import write
from toy_pair import make_files

from prolora_jax.catalog.fleet.inputs import FleetInput
from prolora_jax.catalog.fleet.local_run import RunShare
from prolora_jax.catalog.fleet.receipts import read_receipts
from prolora_jax.cli.main import run
from prolora_jax.io.outputs.reports import report_path
from prolora_jax.io.places.local import LocalPlace

SUPPORT = Path(fleet_workers.__file__).parent
ROOT = SUPPORT.parents[1]
PROLORA = f"""#!{sys.executable}
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]
if __name__ == "__main__":
    if (os.environ["SLURM_ARRAY_TASK_ID"], os.environ["SLURM_ARRAY_TASK_COUNT"]) == ("1", "3"):
        import fleet_workers
        from prolora_jax.catalog.fleet import local_run
        local_run.start_worker = fleet_workers.start_stuck
    from prolora_jax.cli.main import main
    main()
"""
"""The program, but that one task stands still after its first chunk, until its node is killed."""

NAMES = [f"a{n:02}.safetensors" for n in range(9)]


def part(shard: int, shards: int) -> set[str]:
    share = RunShare(1, shard, shards)
    return {name for name in NAMES if share.has((FleetInput(name, ""),))}


def test_an_array_with_a_dead_node_is_finished_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = make_files(tmp_path / "toys")
    for seed, name in enumerate(NAMES):
        (tmp_path / "loras").mkdir(exist_ok=True)
        write(tmp_path / "loras" / name, seed, (4,))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "prolora").write_text(PROLORA)
    (tmp_path / "bin" / "prolora").chmod(0o755)
    script = (ROOT / "configs/fleet/slurm_array.sh").read_text()
    for told, here in (("0-63", "0-2"), ("per-task=8", "per-task=1"), ("--local 8", "--local 1")):
        assert told in script
        script = script.replace(told, here)
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "array.sh").write_text(script)
    env = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CATALOG": str(tmp_path / "loras"),
        "SOURCE": str(made.source),
        "TARGET": str(made.target),
        "OUT": str(tmp_path / "out"),
        "SCRATCH": str(tmp_path),
        "STORE": f"file://{tmp_path}/shared",
    }
    lost = part(1, 3)
    assert len(lost) > 1

    def done() -> set[str]:
        return set(read_receipts(LocalPlace(tmp_path / "out")))

    with slurm(tmp_path / "cluster") as cluster:
        first = cluster.say("sbatch", "--parsable", "array.sh", env=env)
        cluster.until(lambda: len(done() & lost) > 0 and done() >= {*NAMES} - lost)
        left = {*NAMES} - done()
        assert left
        assert left < lost
        told = cluster.say("scontrol", "show", "job", f"{first}_1")
        node = re.search(r"NodeList=(n\d)", told)
        assert node is not None
        cluster.kill(node[1])
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.safetensors")}
        second = cluster.say("sbatch", "--parsable", "--array=0-1", "array.sh", env=env)
        cluster.until(lambda: cluster.states(second) == {"COMPLETED"})
    assert done() == {*NAMES}
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "prolora-store"))
    bases = ("--source", env["SOURCE"], "--target", env["TARGET"], "--store", env["STORE"])
    assert run(["migrate", env["CATALOG"], *bases, "--out", str(tmp_path / "one"), "-q"]) == 0
    for name in NAMES:
        for file in (name, report_path(Path(name))):
            one, many = (tmp_path / place / file for place in ("one", "out"))
            assert many.read_bytes() == one.read_bytes()
