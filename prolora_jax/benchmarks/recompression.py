"""Recompression alone: from the parts of an arm to factors of a rank (see `migrate`)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.benchmarks import baselines
from prolora_jax.benchmarks.baselines import cut_by_qr
from prolora_jax.benchmarks.cores import progress
from prolora_jax.benchmarks.made_updates import Shape, Updates, made_module
from prolora_jax.benchmarks.timing import interleaved, ratio
from prolora_jax.method.projection import gram, to_file_factors
from prolora_jax.method.singular import gauge, union

DECADES = 4
"""How much smaller the last column of an update is than the first, where columns decay."""

Parts = tuple[jax.Array, ...]


def recompression(shape: Shape, rank: int, adapters: int, rounds: int) -> dict[str, Any]:
    """Ours against QR and SVD, batched, on the same parts.

    Args:
        shape: of the module.
        rank: of the updates, and of the result.
        adapters: how many; at most a block's.
        rounds: samples of each.

    Returns:
        Per kind of columns: times of one adapter, gain, and what either misses of the updates.
    """
    updates = Updates(made_module(shape, min(shape) // 2), rank, adapters)
    left, right = (side.parts for side in updates.sides()())
    left, right = (tuple(p[:adapters, :rank] for p in parts) for parts in (left, right))
    decay = jnp.logspace(0.0, -DECADES, rank, dtype=jnp.float32)[:, None]
    found = {}
    for name, parts in (("even", left), ("decaying", tuple(part * decay for part in left))):
        found[name] = _compared(parts, right, rank, rounds)
        times = ", ".join(
            f"{who} {1e3 * found[name][who]['median_s']:.3g}" for who in ("ours", "qr")
        )
        progress(f"migrate: recompression, {name} columns: {times}")
    return {"shape": list(shape), "rank": rank, "adapters": adapters, "columns": found}


def _compared(left: Parts, right: Parts, rank: int, rounds: int) -> dict[str, Any]:
    torch = baselines.library()
    adapters = len(left[0])
    up_parts, down_parts = (
        [torch.from_numpy(np.array(part)) for part in parts] for parts in (left, right)
    )

    def qr() -> tuple[Any, Any]:
        return cut_by_qr(torch.cat(up_parts, dim=1).mT, torch.cat(down_parts, dim=1), rank)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        return compressed(left, right, rank)

    samples = {
        name: s.per(adapters) for name, s in interleaved({"ours": ours, "qr": qr}, rounds).items()
    }
    errors = {
        name: _missed(left, right, *factors)
        for name, factors in (("ours", ours()), ("qr", [a.numpy() for a in qr()]))
    }
    best = _least_missed(left, right, rank)
    return {
        **{name: found.to_dict() for name, found in samples.items()},
        "gain": ratio(samples["qr"], samples["ours"]),
        "missed": {"best": float(best.max()), **{n: float(e.max()) for n, e in errors.items()}},
        "error_ratio": float((errors["ours"] / errors["qr"]).max()),
    }


_grams = jax.jit(lambda parts: tuple(gram(part, jnp.float64) for part in parts))


def compressed(left: Parts, right: Parts, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """What `execute` does with the parts of a block: `up (adapters, out, rank)` and `down`."""
    with jax.enable_x64(True):
        up_grams, down_grams = jax.device_get((_grams(left), _grams(right)))
    form = union([gauge(up, down) for up, down in zip(up_grams, down_grams, strict=True)])
    mixing = tuple(jnp.asarray(m[:, :rank], jnp.float32) for m in (form.up, form.down))
    stored = to_file_factors(left, right, (mixing[0], mixing[1]), jnp.ones(len(left[0])), "float32")
    up, down = jax.device_get((stored.up, stored.down))
    return up, down


def _missed(left: Parts, right: Parts, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Frobenius norm of update minus result, relative to the update, per adapter; float64."""
    ups, downs = _whole(left, right)
    # Both as one product: its norm needs only the Gram matrices of the triangles of QR.
    both_up = np.concatenate([ups, np.asarray(up, np.float64)], axis=2)
    both_down = np.concatenate([downs, -np.asarray(down, np.float64)], axis=1)
    return _norms(both_up, both_down) / _norms(ups, downs)


def _least_missed(left: Parts, right: Parts, rank: int) -> np.ndarray:
    """What the best factors of the rank miss, relative to the update."""
    ups, downs = _whole(left, right)
    sigma = np.linalg.svd(_core(ups, downs), compute_uv=False)
    return np.linalg.norm(sigma[:, rank:], axis=1) / np.linalg.norm(sigma, axis=1)


def _whole(left: Parts, right: Parts) -> tuple[np.ndarray, np.ndarray]:
    ups, downs = (
        np.concatenate([np.asarray(part, np.float64) for part in parts], axis=1)
        for parts in (left, right)
    )
    return np.swapaxes(ups, 1, 2), downs


def _core(ups: np.ndarray, downs: np.ndarray) -> np.ndarray:
    """A small matrix with the singular values of `ups @ downs`."""
    r_up, r_down = (np.linalg.qr(a, mode="r") for a in (ups, np.swapaxes(downs, 1, 2)))
    return r_up @ np.swapaxes(r_down, 1, 2)


def _norms(ups: np.ndarray, downs: np.ndarray) -> np.ndarray:
    return np.linalg.norm(_core(ups, downs), axis=(1, 2))
