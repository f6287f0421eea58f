"""Fleets over other stores: Google's, by an emulator, and one that must be refused (rclone)."""

from pathlib import Path

import fleet_workers
import pytest
from fake_gcs import EMULATOR, proxied_gcs
from seaweed import BUCKET, careless, use

from prolora_jax.catalog.fleet import local_run
from prolora_jax.catalog.fleet.checking import check_outputs
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.local_run import RunShare, run_here
from prolora_jax.catalog.fleet.receipts import compact, read_receipts
from prolora_jax.cli.main import run
from prolora_jax.io.places.opening import open_place


def test_a_fleet_from_and_to_googles_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By worker processes, a third of whose writes have no answer at first."""
    names = [f"a/{n}.safetensors" for n in range(8)]
    monkeypatch.setattr(local_run, "start_worker", fleet_workers.start_toy)
    with proxied_gcs(BUCKET) as proxy:
        monkeypatch.setenv(EMULATOR, proxy.endpoint)
        inputs, out = open_place(f"gs://{BUCKET}/in"), open_place(f"gs://{BUCKET}/out")
        for name in names:
            inputs.create(name, f"this is {name}".encode(), {})
        asked = [0]

        def third(method: str, path: str):
            asked[0] += method == "POST"
            return "lose" if method == "POST" and asked[0] % 3 == 0 else None

        proxy.choose = third
        job = FleetJob(f"gs://{BUCKET}/in", f"gs://{BUCKET}/out", "source", "target")
        found = run_here(job, RunShare(2))
        assert (found.done, found.left, found.complete) == (8, 0, True)
        proxy.choose = lambda method, path: None
        assert list(read_receipts(out)) == names
        for name in names:
            assert out.read_range(name, 0, 99) == f"this is {name}".encode()[::-1]
        assert check_outputs(out).problems == {}
        assert compact(out) == 8
        again = run_here(job, RunShare(1))
        assert (again.done, again.complete) == (0, True)


def test_a_store_that_keeps_no_condition_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Before a base model is looked for, or any other byte than the probe written."""
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "a.safetensors").write_bytes(b"x")
    served = tmp_path / "served"
    served.mkdir()
    with careless(served) as endpoint:
        use(endpoint, monkeypatch)
        out = f"s3://{BUCKET}/out"
        bases = ("--source", "source", "--target", "target")
        assert run(["fleet", "run", str(tmp_path / "loras"), *bases, "--out", out, "-q"]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert f"{out}: let two writers make one file" in said
    assert "use another store" in said
    files = [p.relative_to(served).as_posix() for p in served.rglob("*") if p.is_file()]
    assert files == [f"{BUCKET}/out/.prolora/probe"]
