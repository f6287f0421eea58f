"""A job on the hosts of a Ray cluster: what each must see, and how a worker starts there."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from socket import gethostname
from typing import NamedTuple

from prolora_jax.catalog.fleet.chunk import ChunkDone, ChunkWork
from prolora_jax.catalog.fleet.job import OWN, FleetJob
from prolora_jax.catalog.fleet.share import RunShare
from prolora_jax.engines.crew import AnyCrew, Say, Start
from prolora_jax.errors import ProloraError, Refusal, UsageError
from prolora_jax.io.places.opening import is_url, open_place, without_secrets
from prolora_jax.io.places.place import FilePlace, read_whole

MARK = f"{OWN}/mark"
"""A few letters that no other folder of that name has."""

_COMPILED = "JAX_COMPILATION_CACHE_DIR"


class Elsewhere(NamedTuple):
    """What a worker on another host is told.

    Attributes:
        start: makes the worker.
        job: with paths that mean the same everywhere, if they mean anything.
        first: name of one of the inputs.
        mark: that is in the place of the outputs.
    """

    start: Start[ChunkWork]
    job: FleetJob
    first: str
    mark: bytes


def hire_on_ray(
    start: Start[ChunkWork], job: FleetJob, share: RunShare, first: str, out: FilePlace
) -> AnyCrew[ChunkWork]:
    """A crew on the hosts of a Ray cluster.

    Args:
        start: makes a worker.
        job: what is to be done.
        share: which cluster, and how much of it.
        first: name of one of the inputs.
        out: place of the outputs; gets a mark, by which hosts know it.

    Raises:
        UsageError: Ray is missing, or there is no such cluster.
        OutputError: the place does not answer.
    """
    try:
        from prolora_jax.engines.ray_crew import RayCluster, RayCrew
    except ImportError:
        raise UsageError(
            f"--ray {share.ray}: cannot be used without ray; expected it installed; use pip "
            "install 'prolora_jax[fleet]'",
            code=Refusal.MISSING_LIBRARY,
        ) from None
    out.create(MARK, token_hex(8).encode(), {})
    mark, _ = read_whole(out, MARK, 64)
    told = Elsewhere(start, anywhere(job), first, mark)
    cluster = RayCluster(str(share.ray), share.workers, share.patience)
    # Each host keeps what it has compiled: a worker that takes another's place need not wait.
    store = told.job.store
    usual = {_COMPILED: str(store.with_name(f"{store.name}-compiled"))}
    usual |= {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}
    return RayCrew(start_elsewhere, told, cluster, usual)


def anywhere(job: FleetJob) -> FleetJob:
    """A job whose paths do not depend on the folder that a process is in."""

    def absolute(place: str) -> str:
        # What is neither a URL nor there is a hub's name.
        return place if is_url(place) or not Path(place).exists() else str(Path(place).resolve())

    return replace(
        job,
        inputs=absolute(job.inputs),
        out=job.out if is_url(job.out) else str(Path(job.out).resolve()),
        source=absolute(job.source),
        target=absolute(job.target),
        store=job.store.resolve(),
        cache=job.cache and job.cache.resolve(),
        shared=job.shared.resolve() if isinstance(job.shared, Path) else job.shared,
        share=None,  # hosts come and go, and have no numbers
    )


def start_elsewhere(
    told: Elsewhere, hurried: threading.Event, sign: Say
) -> Callable[[ChunkWork], ChunkDone]:
    """A worker on a host that sees what it must, and whose devices wait for no others.

    Args:
        told: what is to be done.
        hurried: set when a chunk is to end early.
        sign: called as a sign of life.

    Raises:
        UsageError: this host does not see inputs, base models or outputs.
        ProloraError: its devices are part of a larger whole.
    """
    _require_same_places(told)
    if "TPU_PROCESS_BOUNDS" in os.environ:
        from prolora_jax.migration.own_devices import require_own_devices

        require_own_devices()
    return told.start(told.job, hurried, sign)


def _require_same_places(told: Elsewhere) -> None:
    inputs, out, found = open_place(told.job.inputs), open_place(told.job.out), None
    with suppress(FileNotFoundError, ProloraError):
        found = read_whole(out, MARK, 64)[0]
    missing = [out.shown] if found != told.mark else []
    folder = inputs.folder
    if folder is not None and not (folder / told.first).exists():
        missing.append(inputs.shown)
    bases = (told.job.source, told.job.target)
    missing += [base for base in bases if Path(base).is_absolute() and not Path(base).exists()]
    if missing:
        raise UsageError(
            f"{' and '.join(without_secrets(one) for one in missing)}: found another folder, or "
            f"none, on host {gethostname()}; expected what the driver sees; have inputs, base "
            "models and outputs on a file system that all hosts share, or name URLs",
            code=Refusal.MISSING_FILE,
        )
