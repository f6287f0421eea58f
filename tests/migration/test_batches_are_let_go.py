"""A batch that was written is not held while the next one moves: memory does not grow with it."""

import time
import weakref
from pathlib import Path

import pytest

from prolora_jax.migration import many
from prolora_jax.migration.jobs import FileJob, FileOutcome
from prolora_jax.migration.many import Prepared, migrate_files
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions

SECONDS = 2.0
"""How long a batch may take to go once it is written; it takes microseconds."""


class Tensors:
    """What a batch would hold."""


def let_go(batch: "weakref.ref[Tensors]") -> bool:
    ends = time.monotonic() + SECONDS
    while batch() is not None and time.monotonic() < ends:
        time.sleep(0.001)
    return batch() is None


@pytest.mark.parametrize("held", [False, True])
def test_a_written_batch_is_let_go(monkeypatch: pytest.MonkeyPatch, held: bool):
    """With `held` somebody keeps the last batch, as a name of the last turn would: that is seen."""
    read: list[weakref.ref[Tensors]] = []
    moved, gone, kept = [], [], []

    def read_one(job: FileJob, *_):
        tensors = Tensors()
        read.append(weakref.ref(tensors))
        # Not by its own name, which checks types: tensors are held, and nothing is done with them.
        return Prepared._make((job, None, None, tensors, many.BATCH_ROWS, 1, (1.0, 1.0), 0.0))

    def move(_, prepared):
        if moved:
            gone.append(let_go(read[len(moved) - 1]))
        moved.append(len(prepared))
        if held:
            kept[:] = prepared
        return [{} for _ in prepared]

    monkeypatch.setattr(many, "read_job", read_one)
    monkeypatch.setattr(many._Pipeline, "_results", move)
    monkeypatch.setattr(many, "write_job", lambda item, *_: FileOutcome(item.job))
    jobs = [FileJob(Path(f"{n}"), Path(f"out {n}"), 8) for n in range(3)]
    outcomes = list(migrate_files(jobs, object.__new__(BasePair), MigrationOptions()))
    assert [o.job for o in outcomes] == jobs
    assert moved == [1] * 3
    assert gone == [not held] * 2
