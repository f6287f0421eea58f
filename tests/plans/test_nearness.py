"""`--gate auto`: what its limit is calibrated on, where it stands, and what it decides."""

from pathlib import Path

import numpy as np
import pytest
from toy_pair import make_files

import prolora_jax as pl
from prolora_jax.errors import BaseModelError
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers.tensors import read_tensors, write_tensors
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.nearness import CLOSE_DRIFT, CLOSE_WEIGHTS, is_close, weights_may_decide
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action
from prolora_jax.verification.file import verify_file

AUTO = MigrationOptions(gate="auto")

# --- what the limit is calibrated on: NumPy alone ------------------------------------------------

SHAPES = [(128, 128), (128, 205), (512, 64)]
SPECTRA = ["gauss", "i^-0.25", "i^-0.5", "i^-1", "exp", "spikes 0.15", "spikes 0.5", "spikes 0.8"]
CHANGES = ["noise", "rank 4", "rank 16", "by size", "inside", "pruned"]
ENERGIES = (0.8, 0.9, 0.95)


def orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def weight(rng: np.random.Generator, spectrum: str, shape: tuple[int, int]) -> np.ndarray:
    """A power law, an exponential, a Gaussian, or one with a few strong directions."""
    short, (kind, _, number) = min(shape), spectrum.partition(" ")
    i = np.arange(1, short + 1.0)
    if kind == "gauss":
        return rng.standard_normal(shape)
    if kind == "spikes":
        s = np.where(i <= max(1, short // 8), i**-0.5, 0.0)
    else:
        s = 1e-4 ** (i / short) if kind == "exp" else i ** float(kind.removeprefix("i^"))
    found = orthonormal(rng, shape[0], short) * s @ orthonormal(rng, shape[1], short).T
    if kind == "spikes":
        share, bulk = float(number), rng.standard_normal(shape)
        found *= np.sqrt(share) / np.linalg.norm(found)
        found += bulk * np.sqrt(1.0 - share) / np.linalg.norm(bulk)
    return found


def change(rng: np.random.Generator, kind: str, w: np.ndarray) -> np.ndarray:
    """What training, pruning or rounding may do to a weight, as large as the limit allows."""
    if kind == "pruned":
        size = np.sort(np.abs(w).ravel())
        gone = np.searchsorted(np.cumsum(size**2), CLOSE_DRIFT**2 * np.sum(w**2))
        return np.where(np.abs(w) < size[gone], -w, 0.0)
    if kind.startswith("rank"):
        r = int(kind.split()[1])
        e = rng.standard_normal((w.shape[0], r)) @ rng.standard_normal((r, w.shape[1]))
    elif kind == "inside":  # of low rank, and within the leading directions
        u, _, vt = np.linalg.svd(w, full_matrices=False)
        e = u[:, :32] @ rng.standard_normal((32, 16)) @ rng.standard_normal((16, 32)) @ vt[:32]
    else:
        e = rng.standard_normal(w.shape) * (np.abs(w) if kind == "by size" else 1.0)
    return e * CLOSE_DRIFT * np.linalg.norm(w) / np.linalg.norm(e)


def similarity(a: tuple, b: tuple, energy: float) -> float:
    """The smaller phi at the common rank, from two SVDs."""
    ranks = []
    for _, s, _ in (a, b):
        shares = np.cumsum(s**2) / np.sum(s**2)
        ranks.append(int(np.argmax(shares >= energy)) + 1)
    k = max(ranks)
    left, right = a[0][:, :k].T @ b[0][:, :k], a[2][:k] @ b[2][:k].T
    return min(float(np.sum(left**2)), float(np.sum(right**2))) / k


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_close_weights_have_similar_subspaces(spectrum: str):
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        w = weight(rng, spectrum, shape)
        source = np.linalg.svd(w, full_matrices=False)
        for kind in CHANGES:
            target = w + change(rng, kind, w)
            assert is_close(float(np.sum((target - w) ** 2)) * (1 - 1e-9), float(np.sum(w**2)))
            other = np.linalg.svd(target, full_matrices=False)
            for energy in ENERGIES:
                assert similarity(source, other, energy) >= 0.8, (shape, kind, energy)


def test_no_limit_holds_for_every_weight():
    """Between equal singular values the smallest change turns a span as far as it likes."""
    rng = np.random.default_rng(0)
    s = np.array([8.0, *[0.5] * 63])
    u, v = orthonormal(rng, 64, 64), orthonormal(rng, 64, 64)
    w, e = u * s @ v.T, rng.standard_normal((64, 64))
    target = w + 1e-6 * e
    assert is_close(float(np.sum((target - w) ** 2)), float(np.sum(w**2)))
    a, b = (np.linalg.svd(one, full_matrices=False) for one in (w, target))
    assert similarity(a, b, 0.9) < 0.7


# --- where it stands -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"gate": "phi"},
        {"gate": "corrected"},
        {"method": "copy"},
        {"identical": "project"},
        {"pair_rank": "own"},
        {"min_similarity": 0.81},
        {"basis_rank": "energy=0.79"},
        {"basis_rank": "energy=0.96"},
        {"basis_rank": "fraction=0.5"},
        {"basis_rank": "gap"},
    ],
)
def test_elsewhere_subspaces_decide(options: dict):
    assert weights_may_decide(AUTO)
    assert weights_may_decide(MigrationOptions(gate="auto", basis_rank="energy=0.95"))
    assert weights_may_decide(MigrationOptions(gate="auto", min_similarity=0.5))
    assert not weights_may_decide(MigrationOptions(**{"gate": "auto", **options}))


@pytest.mark.parametrize(
    ("difference", "size", "close"),
    [
        (0.0, 1.0, True),
        (CLOSE_DRIFT**2, 1.0, True),
        (1.001 * CLOSE_DRIFT**2, 1.0, False),
        (0.0, 0.0, False),
        (np.nan, 1.0, False),
        (1.0, np.nan, False),
        (np.inf, np.inf, False),
    ],
)
def test_odd_numbers_are_not_close(difference: float, size: float, close: bool):
    assert is_close(difference, size) is close


# --- what it decides -----------------------------------------------------------------------------


def test_decisions_are_those_of_subspaces(tmp_path: Path):
    """Close modules are copied, and would have passed; all others are as without it."""
    files = make_files(tmp_path)
    source, target = load_base_model(files.source), load_base_model(files.target)
    adapter = pl.load_adapter(files.adapter)
    # The span of an uninformative module is everything: nothing about it can be wrong.
    plans = [pl.migrate(adapter, source, target, o)[1] for o in (MigrationOptions(), AUTO)]
    by_phi, auto = ({m.path: m for m in plan.modules} for plan in plans)
    assert by_phi.keys() == auto.keys()
    assert plans[0].skipped == plans[1].skipped
    close = {path for path, m in auto.items() if CLOSE_WEIGHTS in m.flags}
    assert 0 < len(close) < len(auto)
    for path, module in auto.items():
        a = source.matrix(module.source_path).astype(np.float64)
        b = target.matrix(path).astype(np.float64)
        assert (path in close) == (np.linalg.norm(b - a) / np.linalg.norm(a) <= CLOSE_DRIFT)
        if path in close:
            assert (module.action, module.phi_left) == (Action.COPY, None)
            assert by_phi[path].action is Action.PROJECT
            assert min(by_phi[path].phi_left, by_phi[path].phi_right) >= 0.8  # pyright: ignore
        else:
            assert module == by_phi[path]


def test_close_relatives_need_no_subspaces(tmp_path: Path):
    files = make_files(tmp_path)
    source, target = load_base_model(files.source), load_base_model(files.target)
    store = FolderStore(tmp_path / "store")
    pair = BasePair(source, target, store)
    pairs = pair.matching().pairs
    close = {p: s for p, s in pairs.items() if pair.measure({p: s}, AUTO)[p].close}
    assert close
    before = store.entries()
    assert all(m.close for m in BasePair(source, target, store).measure(close, AUTO).values())
    assert store.entries() == before


def test_weights_that_are_not_finite_are_named(tmp_path: Path):
    files = make_files(tmp_path)
    (place,) = Path(files.target).rglob("*.safetensors")
    tensors, header = read_tensors(place, error=BaseModelError)
    for array in tensors.values():
        array.reshape(-1)[0] = np.nan
    write_tensors(place, tensors, header)
    source, target = load_base_model(files.source), load_base_model(files.target)
    with pytest.raises(BaseModelError, match="found NaN or infinite numbers"):
        pl.migrate(pl.load_adapter(files.adapter), source, target, AUTO)


def test_verify_decides_anew(tmp_path: Path):
    files, store = make_files(tmp_path / "toy"), FolderStore(tmp_path / "store")
    out, report = tmp_path / "out.safetensors", tmp_path / "out.safetensors.report.json"
    pl.migrate_file(files.adapter, files.source, files.target, out, AUTO, store=store)
    assert verify_file(out).ok
    said = report.read_text()
    assert CLOSE_WEIGHTS in said
    report.write_text(said.replace(f'"{CLOSE_WEIGHTS}"', '"identical"', 1))
    checked = verify_file(out)
    assert not checked.ok
    # A base model that has moved away: its weights are not close, and the copies are no copies.
    report.write_text(said)
    (place,) = Path(files.target).rglob("*.safetensors")
    tensors, header = read_tensors(place, error=BaseModelError)
    rng = np.random.default_rng(0)
    for array in tensors.values():
        noise = rng.standard_normal(array.shape) * np.linalg.norm(array) / np.sqrt(array.size)
        array += (0.3 * noise).astype(array.dtype)
    write_tensors(place, tensors, header)
    problems = [p for m in verify_file(out).modules for p in m.problems]
    assert any("report says copy, replanned: project" in problem for problem in problems)


def test_catalog_is_decided_and_verified_alike(tmp_path: Path):
    files = make_files(tmp_path / "toy")
    job = pl.CatalogJob((files.adapter,), tmp_path / "out", AUTO)
    source, target = load_base_model(files.source), load_base_model(files.target)
    pl.run_catalog(job, BasePair(source, target, FolderStore(tmp_path / "store")))
    assert pl.verify_catalog(tmp_path / "out").ok
