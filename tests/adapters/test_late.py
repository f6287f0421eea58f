"""Factors that are made when they are asked for are those that would have been made at once."""

from dataclasses import replace

import ml_dtypes  # noqa: F401 (NumPy knows bfloat16 by its name then)
import numpy as np
import pytest

from prolora_jax.adapters.adapter import Adapter, StructuredModule
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.adapters.algorithms.factoring import factored
from prolora_jax.adapters.formats.folding import ROUNDOFF, rounded
from prolora_jax.adapters.late import LateModule
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec

SHAPES = {"unet.a": (24, 32), "unet.b": (16, 4, 3, 3)}
SPEC = BaseModelSpec("toy", {path: ModuleSpec(path, shape) for path, shape in SHAPES.items()})
RANKS = [FactorRank(), FactorRank(0.9, 7), FactorRank(1.0, None), FactorRank(0.999, 4)]


def adapter() -> Adapter:
    """A LoHa of rank 2 on both layers, and a LoKr on both of a spectrum that falls."""
    rng, modules = np.random.default_rng(3), []
    for path, (out, width, *window) in SHAPES.items():
        columns = int(np.prod([width, *window]))
        parts = {
            f"hada_w{n}_{side}": rng.standard_normal(shape).astype(np.float32)
            for n in "12"
            for side, shape in (("a", (out, 2)), ("b", (2, columns)))
        }
        modules.append(StructuredModule(path, "loha", parts, alpha=1.0))
        halves = {
            "lokr_w1": rng.standard_normal((4, 2)).astype(np.float32),
            "lokr_w2_a": rng.standard_normal((out // 4, 3)) * (1.0, 0.2, 0.01),
            "lokr_w2_b": rng.standard_normal((3, width // 2, *window)),
        }
        modules.append(StructuredModule(path, "lokr", halves, alpha=1.5))
    return Adapter((), "kohya-ldm", structured=tuple(modules))


@pytest.mark.parametrize("rank", RANKS, ids=str)
def test_late_factors_are_the_ones_made_at_once(rank: FactorRank):
    at_once = factored(adapter(), SPEC, rank=rank).modules
    late = factored(adapter(), SPEC, rank=rank, late=True).modules
    assert sum(isinstance(module, LateModule) for module in late) >= 2
    for one, other in zip(at_once, late, strict=True):
        assert (one.path, one.rank, one.dtype) == (other.path, other.rank, other.dtype)
        assert one.nbytes == other.nbytes
        assert one.weight_shape == other.weight_shape == SHAPES[one.path]
        assert one.made_from is not None
        assert other.made_from is not None
        assert one.made_from.kept == pytest.approx(other.made_from.kept, rel=1e-12)
        assert one.norm == pytest.approx(other.norm, rel=1e-6)
    # In any order, and again: those of one module are held at a time.
    for i in (*range(len(late)), 0, 2, 0):
        np.testing.assert_array_equal(late[i].up, at_once[i].up)
        np.testing.assert_array_equal(late[i].down, at_once[i].down)


@pytest.mark.parametrize("late", [False, True])
def test_an_untrained_lokr_adds_nothing(late: bool):
    trained = adapter()
    zeros = tuple(
        replace(m, parts={**m.parts, "lokr_w2_a": np.zeros_like(m.parts["lokr_w2_a"])})
        for m in trained.structured
        if m.algorithm == "lokr"
    )
    made = factored(replace(trained, structured=zeros), SPEC, late=late).modules
    assert [module.norm for module in made] == [0.0, 0.0]
    assert not any(module.up.any() and module.down.any() for module in made)


LARGE = BaseModelSpec("toy", {p: ModuleSpec(p, (96, 160)) for p in ("unet.a", "unet.b")})


def lokr(rank: int) -> Adapter:
    """Two LoKr with both halves full: (8, 8), and (12, 20) of a rank."""
    rng, modules = np.random.default_rng(rank), []
    for path in LARGE.modules:
        second = rng.standard_normal((12, rank)) @ rng.standard_normal((rank, 20))
        parts = {"lokr_w1": rng.standard_normal((8, 8)), "lokr_w2": second}
        modules.append(StructuredModule(path, "lokr", parts))
    return Adapter((), "kohya-ldm", structured=tuple(modules))


@pytest.mark.parametrize("second", [12, 3])  # more products than columns; and fewer: nothing is cut
@pytest.mark.parametrize("late", [False, True])
def test_factors_of_lokr_are_the_best_of_their_rank(second: int, late: bool):
    given = lokr(second)
    found = factored(given, LARGE, rank=FactorRank(0.999, 32), late=late).modules
    for module, whole in zip(found, given.structured, strict=True):
        want = np.kron(whole.parts["lokr_w1"], whole.parts["lokr_w2"])
        sigma = np.linalg.svd(want, compute_uv=False)
        held = np.sum(sigma[: module.rank] ** 2) / np.sum(sigma**2)
        product = module.up.astype(np.float64) @ module.down.astype(np.float64)
        assert module.rank == (32 if second == 12 else 24)
        assert module.made_from is not None
        assert module.made_from.kept == pytest.approx(held, rel=1e-9)
        missed = np.linalg.norm(want - product) ** 2 / np.sum(sigma**2)
        assert missed == pytest.approx(1 - held, abs=1e-9)
        assert module.norm == pytest.approx(np.sqrt(np.sum(sigma[: module.rank] ** 2)), rel=1e-6)


@pytest.mark.parametrize(("keep_own", "name"), [(False, "eigh"), (True, "eigvalsh")])
def test_each_half_is_decomposed_once(keep_own: bool, name: str, monkeypatch: pytest.MonkeyPatch):
    asked, plain = [], getattr(np.linalg, name)
    monkeypatch.setattr(np.linalg, name, lambda a: asked.append(a.shape) or plain(a))
    monkeypatch.setattr(np.linalg, "svd", None)
    rank = FactorRank(0.999, 32)
    found = factored(lokr(12), LARGE, rank=rank, late=True, keep_own=keep_own).modules
    assert [m.rank for m in found] == [32, 32]
    if not keep_own:  # what is copied as it is has no factors
        assert [m.up.shape for m in found] == [(96, 32)] * 2
    assert asked == [(8, 8), (12, 12)] * 2


def test_own_tensors_come_along_where_they_are_asked_for():
    modules = factored(adapter(), SPEC, late=True, keep_own=True).modules
    made = [module.made_from for module in modules]
    assert [m.own.algorithm for m in made if m and m.own] == [m.algorithm for m in made if m]
    assert all(
        m and m.own is None for m in [n.made_from for n in factored(adapter(), SPEC).modules]
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", [1.0, 2.0**-9, 2.0**-13, 2.0**-17, 2.0**9])
@pytest.mark.parametrize("cancel", [False, True])
def test_rounded_factors_hold_the_product(dtype: str, size: float, cancel: bool):
    rng = np.random.default_rng(5)
    up, down = rng.standard_normal((40, 6)) * size, rng.standard_normal((6, 30)) * size
    if cancel:
        up[:, 3:] = -up[:, :3] * (1 + 1e-4)
        down[3:] = down[:3]
    kind = np.dtype(dtype)
    for wide in (np.float64, np.float32):
        given = up.astype(wide), down.astype(wide)
        exact = given[0].astype(np.float64) @ given[1].astype(np.float64)

        def off(pair: tuple[np.ndarray, np.ndarray], exact: np.ndarray = exact) -> float:
            product = pair[0].astype(np.float64) @ pair[1].astype(np.float64)
            return float(np.linalg.norm(product - exact) / np.linalg.norm(exact))

        plain = given[0].astype(kind), given[1].astype(kind)
        found = rounded(*given, kind)
        if off(plain) <= ROUNDOFF[dtype]:
            assert found is not None
            assert all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True))
        elif found is not None:
            assert off(found) <= ROUNDOFF[dtype]


def test_what_plans_ask_for_makes_no_factors(monkeypatch: pytest.MonkeyPatch):
    late = [m for m in factored(adapter(), SPEC, late=True).modules if isinstance(m, LateModule)]
    monkeypatch.setattr(LateModule, "__getattr__", None)
    assert all((m.rank, m.norm, m.nbytes, m.weight_shape, m.dtype) for m in late)
