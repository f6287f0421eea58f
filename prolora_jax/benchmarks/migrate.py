"""`prolora benchmark migrate`: migration of updates, ours against three baselines in PyTorch.

What is measured: `execute.move_all`, arm `prolora`, from the factors of 64 adapters in memory
(float16, as a file has them) to factors on the host as a file will have them: casting in, both
sides, norms, rank, balancing and casting out. No file is read or written. Once with the exact
rank (`ours`) and once back to the rank that came in (`ours cut`). Beside it, per adapter:

* `paper`: dense update, four projections, all complements prepared; `paper cut` with a dense SVD;
* `thin`: factors and cached overlaps, module by module; `thin cut` with QR and a small SVD;
* `wide`: 64 adapters at once in dense composites or thin spans; `wide cut` from Gram matrices.

The baselines take and give float32, cast and stacked before the clock starts, and keep nothing
else: no norms, no file dtype. What depends on the base models alone is prepared ahead for all.
Protocol: `timing`, one thread on one core (`isolated`); seconds are those of one adapter.

The set is the attention layers of SSD-1B at rank 16, k half of the shorter side: each shape is
measured on one module, and times its number of modules added up. Spans are random and known as a
basis store knows them (`made_updates`). In the same run ours and the baselines must agree on one
adapter per shape: exact updates to 1e-4, cut ones must miss as little as the best to 1e-4.

The share of peak is the arithmetic of our own products, 2 rows x (analysis + synthesis), at the
best float32 matmul of this process, over our time: everything that is not a product is loss. So
`gains_at_peak`, what a baseline takes over what our products would take at the peak, is the most
that a gain can be with this form of the arm.
`products` is `projection.apply_side` alone, device to device, Gram matrices included.

Recompression alone: from the two parts on the device to factors of rank 16, against QR and SVD of
their 32 columns, batched over the same adapters, on even and on decaying columns (four decades).
What either misses of the update, in float64, is compared.

Curves: rank, adapters and shape, one at a time, each at a block's full width where it can be.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from prolora_jax.architectures.identify import published_spec
from prolora_jax.benchmarks import baselines, environment, peaks
from prolora_jax.benchmarks.cores import progress
from prolora_jax.benchmarks.made_updates import MadeModule, Shape, Updates, made_module
from prolora_jax.benchmarks.recompression import recompression
from prolora_jax.benchmarks.targets import Verdict, at_least, at_most
from prolora_jax.benchmarks.timing import ROUNDS, Samples, interleaved, ratio, total
from prolora_jax.method.encoding import rank_class

TARGET = "ssd-1b"
RANK, ADAPTERS = 16, 64
BLOCK_ROWS = 1024
"""Rank columns that the curves over ranks and shapes fill with adapters: two wide blocks."""
AGREE = 1e-4

OURS, PRODUCTS = ("ours", "ours cut"), "products"
BASELINES = ("paper", "thin", "wide")

# Least gain over a baseline (without and with a cut rank) and what would be better still.
GAINS: dict[str, tuple[float, float | None]] = {
    "paper": (150.0, None),
    "paper cut": (300.0, None),
    "thin": (2.3, None),
    "thin cut": (2.3, None),
    "wide": (1.0, 1.3),
    "wide cut": (1.0, 1.3),
}
SHARES = {"ours cut": (0.70, 0.85), PRODUCTS: (0.80, None)}
RECOMPRESSION_GAIN = 2.0
RECOMPRESSION_ERROR = 1.0 + 1e-6
"""Of what QR and SVD miss; the allowance is float32 rounding of the factors that are compared."""


class Sizes(NamedTuple):
    """What is measured: of the models, or tiny."""

    counts: Counter[Shape]
    rank: int
    adapters: int
    module: Shape
    """Of the curves over ranks and adapters, and of recompression."""
    ranks: tuple[int, ...]
    catalogs: tuple[int, ...]
    shapes: tuple[tuple[Shape, int, int | None], ...]
    """Shape, k, and how many singular vectors are stored (all if None)."""


def full_sizes() -> Sizes:
    """The attention layers of SSD-1B; curves up to layers of models with 7 billion weights."""
    modules = published_spec(TARGET).modules.values()
    shapes = [(64, 64), (320, 320), (320, 768), (640, 640), (640, 2048), (1280, 1280)]
    shapes += [(1280, 2048), (5120, 640)]
    return Sizes(
        counts=Counter(m.matrix_shape for m in modules if m.kind_is("attn")),
        rank=RANK,
        adapters=ADAPTERS,
        module=(1280, 1280),
        ranks=(4, 8, 16, 32, 64, 128, 256),
        catalogs=(1, 4, 16, 64, 256, 1000),
        shapes=(
            *((shape, min(shape) // 2, None) for shape in shapes),
            ((3072, 3072), 768, 768),
            ((12288, 3072), 768, 768),
            ((4096, 4096), 1024, 1024),
            ((11008, 4096), 1024, 1024),
            ((14336, 4096), 1024, 1024),
        ),
    )


QUICK = Sizes(
    counts=Counter({(48, 48): 3, (40, 96): 1}),
    rank=4,
    adapters=6,
    module=(48, 48),
    ranks=(2, 4),
    catalogs=(1, 5),
    shapes=(((32, 32), 16, None), ((48, 96), 12, 12)),
)


def measure(*, rounds: int = ROUNDS, quick: bool = False) -> dict[str, Any]:
    """The benchmark; to be called in a process of its own (`isolated.run`).

    Args:
        rounds: samples of each contestant.
        quick: tiny shapes: shows that everything runs. Its figures say nothing.

    Returns:
        A document for JSON: protocol, environment, peaks, results, targets.
    """
    baselines.library()  # first, so that its threads are in the environment's description
    found = environment.describe()
    best = peaks.measure(quick=quick)
    peak = best["matmul_flops"]["xla_float32"]
    sizes = QUICK if quick else full_sizes()
    modules = [
        _of_module(made_module(shape, min(shape) // 2), sizes, rounds)
        for shape in sorted(sizes.counts)
    ]
    results = {
        "modules": [_document(each, sizes.counts[each.module.shape], peak) for each in modules],
        "set": _set_document(modules, sizes.counts, peak),
        "recompression": recompression(sizes.module, sizes.rank, sizes.adapters // 2, rounds),
        "curves": curves(sizes, rounds, peak),
    }
    return {
        "benchmark": "migrate",
        "quick": quick,
        "protocol": {
            "rounds": rounds,
            "clock": "process CPU time",
            "rank": sizes.rank,
            "adapters": sizes.adapters,
            "text": __doc__,
        },
        "environment": environment.finish(found),
        "peaks": best,
        "results": results,
        "targets": judged(results),
    }


# --- contestants --------------------------------------------------------------------------------


class Found(NamedTuple):
    """What was measured on one module; seconds are those of one adapter."""

    module: MadeModule
    flops: float
    samples: dict[str, Samples]
    differences: dict[str, float] = {}


def timed(updates: Updates, names: Iterable[str], rounds: int) -> Found:
    """Contestants on the same updates, in turn.

    Args:
        updates: what they work on.
        names: `ours`, `ours cut`, `products`, or those of `Updates.baseline`.
        rounds: samples of each.
    """
    runs, parts = {}, {}
    for name in names:
        if name in OURS:
            runs[name] = updates.ours("source" if name.endswith("cut") else "exact")
            parts[name] = updates.adapters
        elif name == PRODUCTS:
            runs[name], parts[name] = updates.sides(), updates.places
        else:
            runs[name] = updates.baseline(name)
            parts[name] = updates.adapters if name.startswith("wide") else 1
    samples = interleaved(runs, rounds)
    each = {name: found.per(parts[name]) for name, found in samples.items()}
    times = ", ".join(f"{name} {1e3 * found.median:.3g}" for name, found in each.items())
    out, width = updates.module.shape
    progress(f"migrate: {out} x {width}, rank {updates.rank}, {updates.adapters} adapters: {times}")
    return Found(updates.module, updates.module.flops(updates.rank), each)


def _of_module(module: MadeModule, sizes: Sizes, rounds: int) -> Found:
    updates = Updates(module, sizes.rank, sizes.adapters)
    names = ["ours", *BASELINES, "ours cut", *(f"{name} cut" for name in BASELINES), PRODUCTS]
    return timed(updates, names, rounds)._replace(differences=differences(updates))


def differences(updates: Updates) -> dict[str, float]:
    """How far every contestant is from `paper` on the first adapter, relative to its update.

    Of those that cut the rank: how much more they miss of it than the dense SVD does. (Which
    columns are kept is decided by rounding where two singular values are close.)

    Raises:
        ArithmeticError: it is too far: what was timed is not the same.
    """
    wanted = updates.dense("paper")
    size = float(np.linalg.norm(wanted))
    missed = float(np.linalg.norm(updates.dense("paper cut") - wanted))
    found = {}
    for name in ("ours", "thin", "wide"):
        found[name] = float(np.linalg.norm(updates.dense(name) - wanted)) / size
        cut = float(np.linalg.norm(updates.dense(f"{name} cut") - wanted))
        found[f"{name} cut"] = abs(cut - missed) / size
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= AGREE:
        out, width = updates.module.shape
        raise ArithmeticError(
            f"{worst} is {found[worst]:.1e} off on {out} x {width}; expected {AGREE:g} at most"
        )
    return found


# --- results ------------------------------------------------------------------------------------


def _document(found: Found, count: int, peak: float) -> dict[str, Any]:
    forms = [side.form.kind for side in found.module.operators]
    return {
        "shape": list(found.module.shape),
        "k": found.module.k,
        "modules": count,
        "forms": dict(zip(("left", "right"), forms, strict=True)),
        **_figures(found.samples, found.flops, peak),
        "differences": found.differences,
    }


def _set_document(
    modules: Iterable[Found], counts: Mapping[Shape, int], peak: float
) -> dict[str, Any]:
    modules = list(modules)
    numbers = {str(shape): n for shape, n in counts.items()}
    samples = {
        name: total({str(m.module.shape): m.samples[name] for m in modules}, numbers)
        for name in modules[0].samples
    }
    flops = sum(m.flops * counts[m.module.shape] for m in modules)
    return {"modules": sum(counts.values()), **_figures(samples, flops, peak)}


def _figures(samples: Mapping[str, Samples], flops: float, peak: float) -> dict[str, Any]:
    """Times of one adapter; gains over each baseline that was measured; shares of the peak."""
    ours = {name: samples["ours cut" if name.endswith("cut") else "ours"] for name in samples}
    return {
        "seconds": {name: found.to_dict() for name, found in samples.items()},
        "gains": {
            name: ratio(found, ours[name])
            for name, found in samples.items()
            if name.startswith(BASELINES)
        },
        "gains_at_peak": {
            name: found.median / (flops / peak)
            for name, found in samples.items()
            if name.startswith(BASELINES)
        },
        "flops": flops,
        "share_of_peak": {
            name: flops / peak / samples[name].median
            for name in (*OURS, PRODUCTS)
            if name in samples
        },
    }


def judged(results: Mapping[str, Any]) -> list[Verdict]:
    """Every target beside what was found."""
    whole, verdicts = results["set"], []
    case = f"{whole['modules']} modules"
    for name, (limit, stretch) in GAINS.items():
        verdicts.append(at_least(case, f"gain, {name}", limit, whole["gains"][name], stretch))
    for name, (limit, stretch) in SHARES.items():
        share = whole["share_of_peak"][name]
        verdicts.append(at_least(case, f"share of peak, {name}", limit, share, stretch))
    for columns, row in results["recompression"]["columns"].items():
        case = f"{columns} columns"
        what = "recompression alone, gain", "recompression alone, error / QR + SVD"
        verdicts.append(at_least(case, what[0], RECOMPRESSION_GAIN, row["gain"]))
        verdicts.append(at_most(case, what[1], RECOMPRESSION_ERROR, row["error_ratio"]))
    return verdicts


# --- curves -------------------------------------------------------------------------------------


def curves(sizes: Sizes, rounds: int, peak: float) -> dict[str, Any]:
    """Rank, adapters, shape; devices are not measured."""
    shape = sizes.module
    module = made_module(shape, min(shape) // 2)

    def row(updates: Updates, names: Iterable[str]) -> dict[str, Any]:
        found = timed(updates, names, rounds)
        return {
            "shape": list(updates.module.shape),
            "k": updates.module.k,
            "rank": updates.rank,
            "adapters": updates.adapters,
            **_figures(found.samples, found.flops, peak),
        }

    thin = (*OURS, "thin", "thin cut")
    by_rank = [
        row(Updates(module, rank, max(BLOCK_ROWS // rank_class(rank), 1)), (*thin, "paper"))
        for rank in sizes.ranks
    ]
    by_adapters = [row(Updates(module, sizes.rank, n), OURS) for n in sizes.catalogs]
    by_shape = [
        row(Updates(made_module(*each), sizes.rank, sizes.adapters), thin) for each in sizes.shapes
    ]
    return {
        "rank": by_rank,
        "adapters": by_adapters,
        "shape": by_shape,
        "devices": {
            "found": "not measured",
            "reason": "several devices of one host share its cores, and show no speed",
        },
    }
