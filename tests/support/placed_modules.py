"""Run by test_placing.py in a process of its own, with 8 virtual CPU devices.

Migrates files with one table of tensors on one device and on eight, and prints as JSON what the
test asks about: equal outputs, where operators are, what stays, and what programs hold.
"""

import hashlib
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.matching.pairs import ModulePair
from prolora_jax.method.projection import apply_side
from prolora_jax.migration import many
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.placing import OperatorsOnDevices
from prolora_jax.plans.options import MigrationOptions

OPTIONS = MigrationOptions(rank="source")


def outputs(jobs: list[FileJob], pair: BasePair, devices: list[Any]) -> dict[str, str]:
    """Digests of the outputs of a run on some devices."""
    spread = partial(OperatorsOnDevices, devices=devices)
    setattr(many, "OperatorsOnDevices", spread)  # noqa: B010 (types know it as a class)
    for outcome in many.migrate_files(jobs, pair, OPTIONS, Writing(pair="0" * 16)):
        if outcome.error is not None:
            raise outcome.error
    return {j.output.name: hashlib.sha256(j.output.read_bytes()).hexdigest() for j in jobs}


def main(folder: Path) -> None:
    """Compare one device and eight."""
    sys.path.insert(0, str(Path(__file__).parent))
    from small_adapters import write
    from toy_pair import make_files

    toy = make_files(folder / "toy")
    pair = BasePair(load_base_model(toy.source), load_base_model(toy.target))
    files = [write(folder / "in" / f"{i}.safetensors", i, (8,)) for i in range(8)]
    every = jax.local_devices()
    one, eight = (
        outputs([FileJob(f, folder / str(len(devices)) / f.name) for f in files], pair, devices)
        for devices in (every[:1], every)
    )
    job = FileJob(files[0], folder / "alone.safetensors")
    prepared = many.read_job(job, pair, OPTIONS, Writing())
    pairs = [ModulePair(s.source_path, s.path) for s in prepared.plan.steps if s.similarity]
    kept = OperatorsOnDevices(pair, OPTIONS)
    first = dict(kept.each(pairs))
    sides = [side.operator for p in first.values() for side in p.operators]
    budget = max(sum(array.nbytes for array in jax.tree.leaves(side)) for side in sides)
    little = OperatorsOnDevices(pair, OPTIONS, budget=budget)
    earlier, later = dict(little.each(pairs)), dict(little.each(pairs))
    staying = [m for m, p in later.items() if p.matrices is earlier[m].matrices]
    placed = next(iter(first.values()))
    side = placed.operators.left
    rows = jax.device_put(np.ones((8, 8, len(side.operator.analysis)), np.float32), placed.device)
    program = apply_side.lower(side.form, placed.matrices[0], rows).compile().as_text() or ""
    words = ("all-gather", "all-reduce", "collective", "all-to-all")
    found = {
        "devices": len(every),
        "outputs": len(one),
        "equal": one == eight,
        "used": len({str(p.device) for p in first.values()}),
        "modules": len(pairs),
        "where": all(
            jnp.asarray(matrix).devices() == {p.device}
            for p in first.values()
            for matrices in p.matrices
            for matrix in (matrices.analysis, *matrices.synthesis)
        ),
        "stay": all(p.matrices is first[m].matrices for m, p in kept.each(pairs)),
        "go": 0 < len(staying) < len(pairs),
        "collectives": [word for word in words if word in program],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
