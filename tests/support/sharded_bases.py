"""Run by test_subspaces_on_devices.py in a process of its own, with 8 virtual CPU devices.

Decomposes weights of several spectra on one device, over a mesh and by rows, and through
`compute_subspaces`; prints the largest error of each kind as JSON.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.containers.tensors import write_tensors
from prolora_jax.method.basis import Basis, BasisRule
from prolora_jax.method.decomposition import gram_is_safe
from prolora_jax.method.decomposition_on_devices import (
    TallDecomposition,
    decompose_rows,
    decompose_stack,
    rows_program,
    safe_ratio,
)
from prolora_jax.subspaces import compute as bases
from prolora_jax.subspaces import on_devices as basis_batches
from prolora_jax.subspaces.store import MemoryStore

LONG, SHORT, K = 72, 40, 16
TALLEST = 1003  # not a multiple of 8
SLOT = "down_blocks.0.attentions.0.transformer_blocks"

Errors = dict[str, float]


class Host(NamedTuple):
    """A `TallDecomposition` on the host."""

    long: np.ndarray
    s: np.ndarray
    short: np.ndarray

    @classmethod
    def of(cls, found: TallDecomposition) -> "Host":
        """Fetch it from the devices."""
        return cls(*(np.asarray(a) for a in found))

    def layer(self, i: int) -> "Host":
        """One weight of a stack."""
        return Host(*(a[i] for a in self))


def spectra() -> dict[str, np.ndarray]:
    """Singular values, all cut at `K`."""
    index = np.arange(SHORT)
    decaying = 0.9**index
    flat = 1.0 - 0.3 * index / SHORT
    gap = np.where(index < K, 1.0, 1.0 - 1e-6) * np.where(index < K // 2, 2.0, 1.0)
    steep = 10.0 ** (-3.5 * index / K)  # s_K / s_1 = 6e-4: still safe in float64
    deficient = np.where(index < K + 4, decaying, 0.0)
    return {"decaying": decaying, "flat": flat, "gap": gap, "steep": steep, "deficient": deficient}


def weight(rng: np.random.Generator, s: np.ndarray, long: int = LONG) -> np.ndarray:
    """A float32 weight `(long, short)` with about these singular values."""
    left, right = (np.linalg.qr(rng.normal(size=(n, len(s))))[0] for n in (long, len(s)))
    return ((left * s) @ right.T).astype(np.float32)


def errors(found: Host, tall: np.ndarray, k: int) -> Errors:
    """Against LAPACK's SVD in float64: how far off the leading k columns and all of s are."""
    long, s, short = (a.astype(np.float64) for a in found)
    u, true, vt = np.linalg.svd(tall.astype(np.float64), full_matrices=False)
    long, rest = long[: len(tall), :k], long[len(tall) :]
    scale = true[0] ** 2 or 1.0
    return {
        "left": norm(long @ long.T - u[:, :k] @ u[:, :k].T),
        "right": norm(short[:, :k] @ short[:, :k].T - vt[:k].T @ vt[:k]),
        "long side orthonormal": norm(long.T @ long - np.eye(k)),
        "short side orthonormal": norm(short.T @ short - np.eye(len(short))),
        "squared values": float(np.max(np.abs(s**2 - true**2)) / scale),
        "beyond the rows": float(np.max(np.abs(rest), initial=0.0)),
    }


def norm(matrix: np.ndarray) -> float:
    """Spectral norm."""
    return float(np.linalg.norm(matrix, 2))


def merge(into: dict[str, Errors], name: str, new: Errors) -> None:
    """Keep the larger of each error."""
    old = into.setdefault(name, {})
    into[name] = {key: max(value, old.get(key, 0.0)) for key, value in new.items()}


def stacks(mesh: Mesh, one: Mesh) -> dict[str, Errors]:
    """16 weights over 8 devices, in float64 and in float32, and one device against eight."""
    rng = np.random.default_rng(0)
    names = [name for name in spectra() for _ in range(3)]
    talls = np.stack([weight(rng, spectra()[name]) for name in names] + [np.zeros((LONG, SHORT))])
    talls = talls.astype(np.float32)
    found: dict[str, Errors] = {}
    for wide in (True, False):
        with jax.enable_x64(wide):
            results = [decompose_stack(talls, m) for m in (mesh, one)]
        if len(results[0].long.sharding.device_set) != 8:
            sys.exit("the long side is not spread over the devices")
        many, single = map(Host.of, results)
        for i, name in enumerate(names):
            layer, alone = many.layer(i), single.layer(i)
            if not gram_is_safe(layer.s, K, safe_ratio(layer.s)):
                found.setdefault(f"unsafe {'float64' if wide else 'float32'} {name}", {})
                continue
            if not wide and name == "gap":
                continue  # below the resolution of float32 Gram matrices
            merge(found, f"{'float64' if wide else 'float32'} {name}", errors(layer, talls[i], K))
            difference = {
                "left": norm(project(layer.long) - project(alone.long)),
                "right": norm(project(layer.short) - project(alone.short)),
            }
            if wide:
                merge(found, "one device or eight", difference)
        zero = many.layer(-1)
        merge(found, "zero", errors(zero, talls[-1], 0))
        if np.any(zero.long):
            sys.exit("a zero matrix has no long side")
    return found


def project(columns: np.ndarray) -> np.ndarray:
    """Projector on the leading `K` columns."""
    return columns[:, :K] @ columns[:, :K].T


def rows(mesh: Mesh) -> tuple[dict[str, Errors], dict[str, bool]]:
    """One weight by its rows: errors, and what the compiled program does with the weight."""
    rng = np.random.default_rng(1)
    found: dict[str, Errors] = {}
    along, everywhere = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec("d"), PartitionSpec())
    )
    padded = (TALLEST + 5, SHORT)
    kept = True
    with jax.enable_x64(True):
        for name, s in spectra().items():
            tall = weight(rng, s, TALLEST)
            result = decompose_rows(tall, mesh)
            merge(found, f"rows {name}", errors(Host.of(result), tall, K))
            kept &= result.long.shape == padded and result.long.sharding.is_equivalent_to(along, 2)
            local = {shard.data.shape for shard in result.long.addressable_shards}
            kept &= local == {(padded[0] // 8, SHORT)}
            kept &= all(a.sharding.is_equivalent_to(everywhere, a.ndim) for a in result[1:])
        argument = jax.ShapeDtypeStruct(padded, np.float32, sharding=along)
        program = rows_program.lower(argument, mesh=mesh).compile().as_text() or ""
        gathering = jax.jit(lambda w: 2.0 * w, out_shardings=everywhere)
        control = gathering.lower(argument).compile().as_text() or ""
    whole = f"[{padded[0]},{SHORT}]"
    return found, {
        "rows stay where they are": kept,
        "sums": "all-reduce" in program,
        "gathers": "all-gather" in program or "all-to-all" in program or whole in program,
        "control gathers": "all-gather" in control and whole in control,
    }


def model_of_many_shapes(folder: Path) -> BaseModel:
    """12 square weights, wide and tall ones fewer than devices, a zero and a deficient one."""
    rng = np.random.default_rng(2)
    decaying = 0.9 ** np.arange(24)
    tensors = {}
    for i in range(6):
        block = f"{SLOT}.{i}"
        for role in "kv":
            tensors[f"{block}.attn1.to_{role}.weight"] = weight(rng, decaying, 24)
    for i in range(2):
        tensors[f"{SLOT}.{i}.attn2.to_k.weight"] = weight(rng, decaying, 56).T
        tensors[f"{SLOT}.{i}.ff.net.2.weight"] = weight(rng, decaying, 56)
        tensors[f"{SLOT}.{i}.ff.net.0.proj.weight"] = weight(rng, decaying, 96)
    tensors[f"{SLOT}.0.attn1.to_q.weight"] = np.zeros((24, 24))
    deficient = np.where(np.arange(24) < 10, decaying, 0.0)
    tensors[f"{SLOT}.1.attn1.to_q.weight"] = weight(rng, deficient, 24)
    tensors["conv_in.weight"] = rng.normal(size=(24, 4, 3, 3))
    path = folder / "model.safetensors"
    arrays = {key: np.ascontiguousarray(a, np.float32) for key, a in tensors.items()}
    write_tensors(path, arrays)
    return load_base_model(path)


def stores(folder: Path, mesh: Mesh) -> tuple[dict[str, Errors], dict[str, list[str]]]:
    """Stores filled by devices and by the host: how far apart; which weights the host did."""
    model = model_of_many_shapes(folder)
    paths = list(model.spec.modules)
    basis_batches.ROWS_BYTES = 4 * 24 * 96 - 1  # ff.net.0.proj goes by its rows
    basis_batches.STACK_BYTES = 4 * 24 * 24  # a square weight on each device: 14 in 2 calls
    found: dict[str, Errors] = {}
    by_host: dict[str, list[str]] = {}
    for rule in (BasisRule("energy", 0.95), BasisRule("rank", 24.0), BasisRule("numerical")):
        todo = {model.fingerprint(path): (path, rule) for path in paths}
        gone = {f for f, basis in basis_batches.on_devices(model, todo, mesh) if basis is None}
        by_host[rule[0]] = sorted(todo[f][0] for f in gone)
        device, host = MemoryStore(), MemoryStore()
        counts = (
            bases.compute_subspaces(model, paths, device, rule, mesh=mesh),
            bases.compute_subspaces(model, paths, device, rule, mesh=mesh),
            bases.compute_subspaces(model, paths, host, rule),
        )
        if counts != (len(todo), 0, len(todo)):
            sys.exit(f"computed {counts}, expected all, none, all of {len(todo)}")
        for path in paths:
            a, b = (store.get(model.fingerprint(path)) for store in (device, host))
            merge(found, f"store {rule[0]}", apart(a, b, rule))
    return found, by_host


def apart(a: Basis | None, b: Basis | None, rule: BasisRule) -> Errors:
    """Differences of two bases of one weight, whatever the signs of their columns."""
    if a is None or b is None:
        sys.exit("a basis is missing")
    if [(x.shape, x.dtype) for x in a] != [(x.shape, x.dtype) for x in b]:
        sys.exit("shapes or dtypes differ")
    if any(x.base is not None for x in a):
        sys.exit("a basis keeps a whole stack")
    k = rule.retained(b.s)
    sides = {
        name: norm(x[:, :k] @ x[:, :k].T - y[:, :k] @ y[:, :k].T)
        for name, x, y in (("left", a.u, b.u), ("right", a.v, b.v))
    }
    return {**sides, "squared values": float(np.max(np.abs(a.s**2 - b.s**2)))}


def main() -> None:
    """Print what was found."""
    devices = np.array(jax.devices())
    mesh, one = Mesh(devices, ("d",)), Mesh(devices[:1], ("d",))
    by_rows, program = rows(mesh)
    stored, by_host = stores(Path(sys.argv[1]), mesh)
    found = stacks(mesh, one) | by_rows | stored
    refused = ""
    try:
        decompose_stack(np.ones((3, LONG, SHORT)), mesh)
    except ValueError as error:
        refused = str(error)
    results = {"errors": found, "program": program, "by host": by_host, "refused": refused}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
