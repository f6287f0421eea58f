"""Subspaces of a base model's weights, computed when a store does not have them."""

from collections.abc import Generator, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

from prolora_jax.engines.progress import Progress
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.method.basis import STORED, Basis, BasisRule, Extent
from prolora_jax.subspaces.on_host import (
    NOBODY,
    Others,
    Todo,
    compute_one,
    in_processes,
    in_turn,
    operations,
)
from prolora_jax.subspaces.store import BasisStore
from prolora_jax.subspaces.turns import turns

if TYPE_CHECKING:
    import jax


POOL_WORTH = 2e10
"""Floating-point operations from which starting worker processes, or looking for accelerators,
pays (about 2 s of one core)."""


def load_or_compute(
    model: BaseModel, path: str, store: BasisStore, rule: BasisRule = STORED
) -> Basis:
    """The basis of one module, with at least the columns that `rule` asks for.

    Args:
        model: the base model.
        path: module path.
        store: asked first; gets what had to be computed.
        rule: how many columns are needed.

    Returns:
        The basis. Computing it costs about 10 * long * short^2 float64 operations.

    Raises:
        BaseModelError: when the weight has NaN or infinite numbers.
    """
    fingerprint, rule = model.fingerprint(path), _rule_for(model, path, rule)
    basis = store.get(fingerprint)
    if basis is None or not _serves(basis.extent, rule):
        basis = compute_one(model, path, _wider(None if basis is None else basis.extent, rule))
        store.put(fingerprint, basis)
        basis = store.get(fingerprint) or basis  # another's, where one was first
    return basis


def compute_subspaces(
    model: BaseModel,
    paths: Iterable[str],
    store: BasisStore,
    rule: BasisRule = STORED,
    progress: Progress | None = None,
    workers: int = 1,
    mesh: "jax.sharding.Mesh | None" = None,
) -> int:
    """Fill a store with the subspaces of some modules; what it already has is not done again.

    Each basis goes into the store as soon as it is there: a run that is killed and started again
    goes on where it was. Of a store that many hosts share each does an own part first, and then
    what nobody has done (see `turns`).

    Args:
        model: the base model.
        paths: module paths.
        store: where they go.
        rule: how many columns are needed.
        progress: called with ("subspaces", done, total) after each basis that is computed.
        workers: processes, each with one BLAS thread and its own view of the checkpoint; they
            are started only when there is enough to do. A script that asks for more than one
            needs the usual `if __name__ == "__main__":`.
        mesh: devices to compute on, one axis; weights of one shape are spread over them in
            stacks, very large ones by their rows (see `on_devices`). None: this process's
            accelerators when it has any and there is enough to do, else the host. What the
            devices cannot do safely is done on the host. With devices of several processes all
            of them call this, each with a store of its own (see `across_processes`).

    Returns:
        For how many weights they were computed; of several processes, by all together.

    Raises:
        BaseModelError: when a weight has NaN or infinite numbers.
        ProloraError: another process of the mesh has failed.
        UsageError: another process of the mesh asks for other weights.
    """
    asked: Todo = {}
    lacked: Todo = {}
    absent: set[str] = set()

    def look() -> tuple[Todo, Todo]:
        for path, fingerprint in model.fingerprints(paths).items():  # equal weights are done once
            extent, needed = store.extent(fingerprint), _rule_for(model, path, rule)
            asked[fingerprint] = path, _wider(None, needed)
            if not _serves(extent, needed):
                lacked[fingerprint] = path, _wider(extent, needed)
            if extent is None:
                absent.add(fingerprint)
        return asked, lacked

    if mesh is not None and _is_of_many(mesh):
        from prolora_jax.subspaces.across_processes import across_processes

        total, computed = across_processes(model, look, mesh)
    else:
        look()
        others = NOBODY
        if isinstance(store, FolderStore) and store.share is not None:
            others = Others(store.address, frozenset(absent))
        parts = turns(_costs(model, asked), store.share, dict(zip(asked, asked, strict=True)))
        total = len(lacked)
        computed = _by_turns(model, lacked, parts, workers, mesh, others)
    done = 0
    with closing(computed):
        for done, (fingerprint, basis) in enumerate(computed, start=1):
            if fingerprint in lacked:
                store.put(fingerprint, basis)
            if progress is not None:
                progress("subspaces", done, total)
    return done


def _by_turns(
    model: BaseModel,
    lacked: Todo,
    parts: Iterable[Iterable[str]],
    workers: int,
    mesh: "jax.sharding.Mesh | None",
    others: Others,
) -> Generator[tuple[str, Basis]]:
    for part in parts:
        todo = {fingerprint: lacked[fingerprint] for fingerprint in part if fingerprint in lacked}
        yield from _computed(model, todo, workers, mesh, others)


def _computed(
    model: BaseModel,
    todo: Todo,
    workers: int,
    mesh: "jax.sharding.Mesh | None",
    others: Others,
) -> Generator[tuple[str, Basis]]:
    """Each weight's basis by its fingerprint: from devices if any are there, else from the host."""
    if mesh is None and _work(model, todo) > POOL_WORTH:
        from prolora_jax.subspaces.on_devices import accelerators

        mesh = accelerators()
    if mesh is not None and todo:
        from prolora_jax.subspaces.on_devices import on_devices

        unsafe: Todo = {}
        for fingerprint, basis in on_devices(model, todo, mesh, others):
            if basis is None:
                unsafe[fingerprint] = todo[fingerprint]
            else:
                yield fingerprint, basis
        todo = unsafe
    if workers > 1 and _work(model, todo) > POOL_WORTH:
        yield from in_processes(model, todo, workers, others)
    else:
        yield from in_turn(model, todo, others)


def _is_of_many(mesh: "jax.sharding.Mesh") -> bool:
    """Whether devices of a mesh belong to other processes."""
    import jax

    return any(device.process_index != jax.process_index() for device in mesh.devices.flat)


def _costs(model: BaseModel, todo: Todo) -> dict[str, float]:
    return {fingerprint: operations(model, path) for fingerprint, (path, _) in todo.items()}


def _work(model: BaseModel, todo: Todo) -> float:
    return sum(_costs(model, todo).values())


def _rule_for(model: BaseModel, path: str, rule: BasisRule) -> BasisRule:
    return rule.for_shape(model.spec.modules[path].matrix_shape)


def _serves(extent: Extent | None, rule: BasisRule) -> bool:
    return extent is not None and extent.columns >= rule.retained(extent.s)


def _wider(extent: Extent | None, rule: BasisRule) -> BasisRule:
    """Never ask for less than the default, so that the next rule is likely served, too."""
    if extent is not None:
        return BasisRule("rank", rule.retained(extent.s))
    return max(rule, STORED) if rule.kind == "energy" else rule
