"""What a driver holds of many inputs: little of each, of what is done no more; and no JAX."""

import json
import random
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path, PurePosixPath

import pytest
from fleet_workers import ToyWorker

from prolora_jax.catalog.fleet.chunk import ChunkWork
from prolora_jax.catalog.fleet.inputs import find_inputs, units_of
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.made_store import MadeStore
from prolora_jax.catalog.fleet.receipts import MANY
from prolora_jax.catalog.fleet.standing import standing
from prolora_jax.io.places import pacing
from prolora_jax.io.places.local import LocalPlace
from prolora_jax.io.places.place import Listed

FILES = MANY + 1
EACH = 1000
"""Bytes of an input: about two of its names, and what stands for it."""


@pytest.mark.parametrize("done", [0, FILES], ids=["none done", "all done"])
def test_memory_of_many_inputs_is_bounded(done: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pacing, "FIRST_RATE", pacing.MOST_RATE)
    place = MadeStore(FILES, done)
    out = place.outputs()
    tracemalloc.start()
    try:
        units = units_of(find_inputs(place, out))
        known = standing(out, units)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(units) == FILES
    assert sum(map(known.settles, units)) == len(known.rounds) == done
    assert not known.kept
    assert peak < EACH * FILES
    # A page of the listing for each thousand, one request for the receipts of each sixteen.
    assert place.asked + out.asked < FILES / 1000 + done / 1000 + done / 16 + 9


def test_what_has_to_be_done_again_is_kept(monkeypatch: pytest.MonkeyPatch):
    """A receipt of another content is known to who replaces it."""
    place = MadeStore(40, 20)
    out, page = place.outputs(), MadeStore._page

    def changed(self: MadeStore, below: str, within: str, behind: str | None):
        listed, more = page(self, below, within, behind)
        if not below:
            listed = [one._replace(etag="new") if n == 3 else one for n, one in enumerate(listed)]
        return listed, more

    monkeypatch.setattr(MadeStore, "_page", changed)
    units = units_of(find_inputs(place, out))
    known = standing(out, units)
    assert list(known.kept) == [place.name(3)]
    assert [n for n, unit in enumerate(units) if not known.settles(unit)] == [3, *range(20, 40)]
    assert known.settles(units[0] + units[1])
    assert not known.settles(units[0] + units[3])


def test_inputs_have_the_order_of_their_paths():
    parts = ["a", "a-b", "a b", "b", "é", "a.safetensors", "aa"]
    draw = random.Random(0)
    names = {
        "/".join([*draw.choices(parts, k=draw.randrange(4)), f"{draw.choice(parts)}.safetensors"])
        for _ in range(300)
    }

    class Shuffled(MadeStore):
        def list(self, below: str = ""):
            return iter(draw.sample([Listed(name, 1, "e") for name in sorted(names)], len(names)))

    place = Shuffled(0)
    found = [one.name for one in find_inputs(place, place.outputs())]
    assert found == sorted(names, key=PurePosixPath)


DRIVERS = """
import json, sys
from pathlib import Path
from prolora_jax.cli.main import run

if __name__ == "__main__":
    inputs, bases = Path("in"), ["--source", "no", "--target", "no"]
    command = ["fleet", "run", "in", *bases, "--out", "out", "-q"]
    codes = [run(["fleet", "status", "out"]), run(command)]
    codes.append(run([*command, "--ray", "127.0.0.1:1"]))
    (inputs / "b.safetensors").unlink()
    codes.append(run(command))
    found = sorted({name.partition(".")[0] for name in sys.modules} & {"jax", "jaxlib", "ray"})
    print(json.dumps([codes, found]))
"""


def test_a_driver_has_no_jax(tmp_path: Path):
    """Its commands in a fresh process: one adapter is done, the other has no base models."""
    pytest.importorskip("ray", reason="ray is not installed for this Python")
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.safetensors").write_bytes(b"an adapter")
    job = FleetJob(str(tmp_path / "in"), str(tmp_path / "out"), "no", "no")
    done = find_inputs(LocalPlace(tmp_path / "in"), LocalPlace(tmp_path / "out"))[:1]
    ToyWorker(job, threading.Event(), lambda: None)(ChunkWork(tuple(done), {}))
    (tmp_path / "drivers.py").write_text(DRIVERS)
    drivers = [sys.executable, "drivers.py"]
    said = subprocess.run(drivers, cwd=tmp_path, capture_output=True, text=True)
    assert said.stderr.count("expected a base model") == 1, said.stderr
    assert said.stderr.count("--ray 127.0.0.1:1: found no Ray cluster") == 1
    assert json.loads(said.stdout.splitlines()[-1]) == [[0, 2, 2, 0], ["ray"]]
