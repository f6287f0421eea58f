"""Run by test_cut_operators.py in a process of its own, with 8 virtual CPU devices.

Migrates files on one device, and on eight that may hold less than some sides have, and prints as
JSON what the test asks about: how far the outputs are apart, what lies where, and what programs
hold.
"""

import json
import re
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.matching.pairs import ModulePair
from prolora_jax.method.operators import Method
from prolora_jax.method.projection import apply_side
from prolora_jax.migration import many
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.placing import OperatorsOnDevices, Placed
from prolora_jax.plans.options import MigrationOptions

METHODS: tuple[Method, ...] = ("prolora", "prolora-full")
WORDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
SENT = re.compile(rf" ({WORDS})(?:-start)?\(")


def updates(path: Path) -> dict[str, np.ndarray]:
    """Dense updates of a file of kohya's, by module."""
    tensors = {key: x.astype(np.float64) for key, x in load_file(path).items()}
    ups = [key for key in tensors if key.endswith(".lora_up.weight")]
    return {key: tensors[key] @ tensors[key.replace("lora_up", "lora_down")] for key in ups}


def size(operator: Any) -> int:
    """Bytes of a side."""
    return sum(array.nbytes for array in jax.tree.leaves(operator))


def sent(placed: Placed, number: int) -> Counter[str]:
    """What devices send each other in the program of one side of a module."""
    side, matrices = placed.operators[number], placed.matrices[number]
    rows = np.ones((8, 8, len(side.operator.analysis)), np.float32)
    given = side.form, matrices, jax.device_put(rows, placed.device)
    return Counter(SENT.findall(apply_side.lower(*given).compile().as_text() or ""))


def main(folder: Path) -> None:
    """Compare one device and eight."""
    sys.path.insert(0, str(Path(__file__).parent))
    from small_adapters import write
    from toy_pair import make_files

    toy = make_files(folder / "toy")
    pair = BasePair(load_base_model(toy.source), load_base_model(toy.target))
    files = [write(folder / "in" / f"{i}.safetensors", i, (8,)) for i in range(2)]
    every, apart, found = jax.local_devices(), {}, {}
    for method in METHODS:
        options = MigrationOptions(method=method, dtype="float32", rank="source")
        job = FileJob(files[0], folder / f"{method}.safetensors")
        plan = many.read_job(job, pair, options, Writing()).plan
        pairs = [ModulePair(s.source_path, s.path) for s in plan.steps if s.similarity]
        whole = dict(OperatorsOnDevices(pair, options, every[:1]).each(pairs))
        sizes = sorted(size(side.operator) for p in whole.values() for side in p.operators)
        budget = sizes[len(sizes) // 2]
        written = []
        for devices, room in ((every[:1], None), (every, budget)):
            spread = partial(OperatorsOnDevices, devices=devices, budget=room)
            setattr(many, "OperatorsOnDevices", spread)  # noqa: B010 (types know it as a class)
            where = folder / f"{method} {len(devices)}"
            jobs = [FileJob(file, where / file.name) for file in files]
            for outcome in many.migrate_files(jobs, pair, options, Writing(pair="0" * 16)):
                if outcome.error is not None:
                    raise outcome.error
            written.append([updates(job.output) for job in jobs])
        apart[method] = max(
            float(np.linalg.norm(one[key] - other[key]) / np.linalg.norm(one[key]))
            for one, other in zip(*written, strict=True)
            for key in one
        )
        found[method] = _where(
            dict(OperatorsOnDevices(pair, options, every, budget).each(pairs)), budget
        )
    print(json.dumps({"devices": len(every), "apart": apart, "found": found}))


def _where(placed: dict[ModulePair, Placed], budget: int) -> dict[str, Any]:
    """Of one side of each shape: whether it is larger than a device, its parts, what is sent."""
    kinds: dict[str, dict[str, Any]] = {}
    alone = 0
    for one in placed.values():
        several = len(jax.tree.leaves(one.matrices)[0].sharding.device_set) > 1
        alone += not several
        for number, side in enumerate(one.operators):
            shapes = [array.shape for array in jax.tree.leaves(side.operator)]
            kind = f"{shapes} {side.form.kind} {several}"
            if kind in kinds:
                continue
            shards = [
                x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(one.matrices[number])
            ]
            kinds[kind] = {
                "large": size(side.operator) > budget,
                "several": several,
                "parts": size(side.operator) / sum(shards),
                "sent": sent(one, number),
            }
    return {"alone": alone, "modules": len(placed), "sides": list(kinds.values())}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
