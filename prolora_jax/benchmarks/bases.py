"""`prolora benchmark bases`: bases of weights, ours against `torch.linalg.svd`.

What is measured: `basis.compute_basis`, float32 in and out, against PyTorch's
`svd(full_matrices=False)` of the same float32 weight, per shape of the weights of SDXL and SSD-1B
(protocol: `timing`), in one thread on one core (`isolated`). The time of a whole set is the sum
over its shapes of time x number of modules, from the package's own tables of these models:

* `attention`: the attention layers of both models; `with feed-forward`: theirs, too.
* `pair`: only what a migration needs. Of the source these are the layers that a target layer is
  fed from, as many of each shape as the target has. The baseline decomposes all attention layers
  of both models, so this gain is part less work, part faster work.

Weights are made: `gaussian` (nothing deflates in the eigensolver: the worst case) and `decaying`
(singular values i^-0.5). Their projectors, cut at two shares of the energy, are compared with
those of a float64 SVD, largest error in the spectral norm. `degenerate` weights have a relative
gap of 1e-5 at each cut; they are not timed.

The floor is the arithmetic of a Gram matrix and a symmetric eigenproblem, 2 long short^2 +
(14/3) short^3 (reduction, divide and conquer, transforming back), at the float64 matmul peak of
this process. Columns of the long side are on top of it, and in our time.

Two workers are measured against one where two busy loops get their cores to themselves.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from prolora_jax.architectures.identify import published_spec
from prolora_jax.benchmarks import baselines, environment, peaks
from prolora_jax.benchmarks.cores import all_cores, pin, progress, unpin
from prolora_jax.benchmarks.targets import at_least, at_most
from prolora_jax.benchmarks.timing import ROUNDS, Samples, interleaved, ratio, total
from prolora_jax.method.basis import STORED, compute_basis

Shape = tuple[int, int]

SOURCE, TARGET = "sdxl", "ssd-1b"
CUTS = (0.8, 0.9)
"""Shares of the energy at which projectors are cut to be compared; both below that of `STORED`."""
TIMED = ("gaussian", "decaying")
DEGENERATE_GAP = 1e-5

# Least gain over the baseline, most projector error, most time over the floor.
TARGETS = {
    "attention": 2.1,
    "with feed-forward": 2.5,
    "pair": 3.4,
    "projector error": 1e-6,
    "over the floor": 2.2,
}
QUICK_SHAPES: tuple[Shape, ...] = ((48, 48), (96, 40), (40, 96))
WORKER_SHAPE = (640, 640)
WORKER_BASES = 24


class ShapeResult(NamedTuple):
    """What was measured of the weights of one shape."""

    shape: Shape
    samples: dict[str, Samples]
    errors: dict[str, float]


def measure(*, rounds: int = ROUNDS, quick: bool = False) -> dict[str, Any]:
    """The benchmark; to be called in a process of its own (`isolated.run`).

    Args:
        rounds: samples of each contestant and shape.
        quick: a few tiny shapes instead of those of the models: shows that everything runs.
            Its figures say nothing.

    Returns:
        A document for JSON: protocol, environment, peaks, results, targets.
    """
    baselines.library()  # first, so that its threads are in the environment's description
    found = environment.describe()
    best = peaks.measure(quick=quick)
    peak = best["matmul_flops"]["numpy_float64"]
    counts = _quick_counts() if quick else module_counts()
    results: dict[str, Any] = {}
    targets: list[dict[str, Any]] = []
    for kind in TIMED:
        shapes = [_of_shape(shape, kind, rounds) for shape in _sorted_shapes(counts)]
        results[kind] = {
            "shapes": [_shape_document(each, peak) for each in shapes],
            "sets": _sets(shapes, counts, peak),
        }
        targets += _judged(kind, results[kind])
    smallest = min(_sorted_shapes(counts), key=np.prod)
    results["degenerate"] = {"shape": list(smallest), "errors": _degenerate_errors(smallest)}
    targets.append(_at_most("degenerate", "projector error", _worst_ours([results["degenerate"]])))
    results["two_workers"] = two_workers(quick=quick)
    return {
        "benchmark": "bases",
        "quick": quick,
        "protocol": {"rounds": rounds, "clock": "process CPU time", "text": __doc__},
        "environment": environment.finish(found),
        "peaks": best,
        "results": results,
        "targets": targets,
    }


def module_counts() -> dict[str, dict[str, Counter[Shape]]]:
    """Number of modules by set, side (`ours`, `baseline`) and shape."""
    source, target = (_counted(published_spec(name)) for name in (SOURCE, TARGET))
    attention = source["attention"] + target["attention"]
    everything = attention + source["feed-forward"] + target["feed-forward"]
    return {
        "attention": {"ours": attention, "baseline": attention},
        "with feed-forward": {"ours": everything, "baseline": everything},
        "pair": {"ours": target["attention"] + target["attention"], "baseline": attention},
    }


def _counted(spec: Any) -> dict[str, Counter[Shape]]:
    counts: dict[str, Counter[Shape]] = {"attention": Counter(), "feed-forward": Counter()}
    for path, module in spec.modules.items():
        if module.kind_is("attn"):
            counts["attention"][module.matrix_shape] += 1
        elif ".ff.net." in path:
            counts["feed-forward"][module.matrix_shape] += 1
    return counts


def _quick_counts() -> dict[str, dict[str, Counter[Shape]]]:
    each = Counter(dict.fromkeys(QUICK_SHAPES, 2))
    half = Counter(dict.fromkeys(QUICK_SHAPES[:2], 1))
    return {
        name: {"ours": half if name == "pair" else each, "baseline": each}
        for name in ("attention", "with feed-forward", "pair")
    }


def _sorted_shapes(counts: dict[str, dict[str, Counter[Shape]]]) -> list[Shape]:
    shapes = {shape for sides in counts.values() for side in sides.values() for shape in side}
    return sorted(shapes, key=lambda shape: (min(shape), max(shape), shape))


# --- weights ------------------------------------------------------------------------------------


def weight_of(shape: Shape, kind: str, seed: int = 0) -> np.ndarray:
    """A made weight, float32: `gaussian`, `decaying` or `degenerate`."""
    rng = np.random.default_rng((seed, *shape))
    if kind == "gaussian":
        return rng.standard_normal(shape, np.float32)
    short, long = sorted(shape)
    sigma = np.arange(1.0, short + 1) ** -0.5
    if kind == "degenerate":
        for cut in CUTS:
            # A run of five: the cut may move by one, now that the energies have changed.
            k = _cut(sigma, cut)
            sigma[k - 2 : k + 3] = sigma[k] - DEGENERATE_GAP * sigma[0] * np.arange(-2, 3)
    tall = orthonormal(rng, long, short) * sigma @ orthonormal(rng, short, short).T
    return np.ascontiguousarray(tall if shape[0] == long else tall.T, np.float32)


def orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random orthonormal columns, float64."""
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def _cut(sigma: np.ndarray, energy: float) -> int:
    shares = np.cumsum(sigma**2) / np.sum(sigma**2)
    return int(np.argmax(shares >= energy)) + 1


# --- one shape ----------------------------------------------------------------------------------


def _of_shape(shape: Shape, kind: str, rounds: int) -> ShapeResult:
    torch = baselines.library()
    weight = weight_of(shape, kind)
    tensor = torch.from_numpy(weight)
    samples = interleaved(
        {
            "ours": lambda: compute_basis(weight, STORED),
            "torch": lambda: torch.linalg.svd(tensor, full_matrices=False),
        },
        rounds,
    )
    found = ShapeResult(shape, samples, _errors(weight))
    times = ", ".join(f"{who} {1e3 * each.median:.1f} ms" for who, each in samples.items())
    errors = ", ".join(f"{error:.1e}" for error in found.errors.values())
    progress(f"bases: {kind} {shape[0]} x {shape[1]}: {times}; errors {errors}")
    return found


def _errors(weight: np.ndarray) -> dict[str, float]:
    """Largest projector error of ours and of the baseline, over cuts and sides."""
    u, s, vh = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    basis = compute_basis(weight, STORED)
    left, _, right_h = baselines.library().linalg.svd(
        baselines.library().from_numpy(weight), full_matrices=False
    )
    sides = {"ours": (basis.u, basis.v), "torch": (left.numpy(), right_h.numpy().T)}
    ks = [_cut(s, energy) for energy in CUTS]
    return {
        name: max(
            projector_error(wanted[:, :k], got[:, :k])
            for wanted, got in zip((u, vh.T), found, strict=True)
            for k in ks
        )
        for name, found in sides.items()
    }


def projector_error(wanted: np.ndarray, got: np.ndarray) -> float:
    """Sine of the largest angle between two spans of the same dimension.

    Spectral norm of what one span's columns have outside of the other one; that is the norm of
    the difference of the projectors.
    """
    columns = got.astype(np.float64)
    outside = columns - wanted @ (wanted.T @ columns)
    return float(np.sqrt(max(np.linalg.eigvalsh(outside.T @ outside)[-1], 0.0)))


def _degenerate_errors(shape: Shape) -> dict[str, float]:
    return _errors(weight_of(shape, "degenerate"))


def floor_flops(shape: Shape) -> float:
    """Operations of a Gram matrix and its eigenvectors."""
    short, long = sorted(shape)
    return 2.0 * long * short**2 + 14.0 / 3.0 * short**3


def _shape_document(found: ShapeResult, peak: float) -> dict[str, Any]:
    ours, theirs = found.samples["ours"], found.samples["torch"]
    return {
        "shape": list(found.shape),
        "ours": ours.to_dict(),
        "torch": theirs.to_dict(),
        "gain": ratio(theirs, ours),
        "over_floor": ours.median / (floor_flops(found.shape) / peak),
        "errors": found.errors,
    }


# --- whole sets ---------------------------------------------------------------------------------


def _sets(
    shapes: Iterable[ShapeResult], counts: dict[str, dict[str, Counter[Shape]]], peak: float
) -> dict[str, Any]:
    samples = {
        name: {str(each.shape): each.samples[name] for each in shapes} for name in ("ours", "torch")
    }
    sets = {}
    for name, sides in counts.items():
        ours, theirs = (
            total(samples[who], {str(shape): n for shape, n in sides[side].items()})
            for who, side in (("ours", "ours"), ("torch", "baseline"))
        )
        flops = sum(floor_flops(shape) * n for shape, n in sides["ours"].items())
        sets[name] = {
            "modules": {side: sum(counter.values()) for side, counter in sides.items()},
            "ours": ours.to_dict(),
            "torch": theirs.to_dict(),
            "gain": ratio(theirs, ours),
            "floor_s": flops / peak,
            "over_floor": ours.median / (flops / peak),
        }
    return sets


def _judged(kind: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    sets = found["sets"]
    return [
        *(at_least(kind, f"gain, {name}", TARGETS[name], sets[name]["gain"]) for name in sets),
        _at_most(kind, "projector error", _worst_ours(found["shapes"])),
        _at_most(kind, "over the floor", sets["attention"]["over_floor"]),
    ]


def _worst_ours(shapes: Iterable[dict[str, Any]]) -> float:
    return max(each["errors"]["ours"] for each in shapes)


def _at_most(kind: str, name: str, found: float) -> dict[str, Any]:
    return at_most(kind, name, TARGETS[name], found)


# --- two workers ----------------------------------------------------------------------------------


def two_workers(*, quick: bool = False) -> dict[str, Any]:
    """Bases a second with two worker processes and with one, if two cores are free.

    Returns:
        The shares that two busy loops got, and the gain or `not measured` with the reason.
    """
    cores = sorted(all_cores())[:2]
    if len(cores) < 2:
        return {"gain": "not measured", "reason": "one usable core"}
    shares = peaks.busy_shares(cores, 0.1 if quick else peaks.BUSY_SECONDS)
    if min(shares) < peaks.FREE_CORES:
        reason = f"two busy loops got {shares[0]:.0%} and {shares[1]:.0%} of their cores"
        return {"busy_shares": shares, "gain": "not measured", "reason": reason}
    shape, bases = (QUICK_SHAPES[0], 4) if quick else (WORKER_SHAPE, WORKER_BASES)
    unpin()
    try:
        seconds = [_seconds_with(workers, shape, bases) for workers in (1, 2)]
    finally:
        pin()
    after = peaks.busy_shares(cores, 0.1 if quick else peaks.BUSY_SECONDS)
    free = min(after) >= peaks.FREE_CORES
    return {
        "busy_shares": shares,
        "busy_shares_after": after,
        "wall_s": dict(zip(("one", "two"), seconds, strict=True)),
        "gain": seconds[0] / seconds[1] if free else "not measured",
        "reason": None if free else "the cores were no longer free when it was done",
    }


def _seconds_with(workers: int, shape: Shape, bases: int) -> float:
    """Wall seconds of a number of bases in warm worker processes, at best of three."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        job: Callable[[int], float] = _Job(shape)
        list(pool.map(job, range(4 * workers)))  # every worker has made some
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(job, range(bases)))
            seconds.append(time.perf_counter() - started)
    return min(seconds)


class _Job(NamedTuple):
    """One basis in a worker; only a number comes back, vectors would be pickled."""

    shape: Shape

    def __call__(self, seed: int) -> float:
        weight = weight_of(self.shape, "gaussian", seed)
        return float(compute_basis(weight).s[0])
