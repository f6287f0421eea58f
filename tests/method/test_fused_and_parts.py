"""What a fused layer's update becomes as one matrix and in parts: the table of docs/dit.md.

    python -m pytest -q -s -n 0 tests/method/test_fused_and_parts.py

By the dense reference, in float64; `tests/migration/test_dit_fused.py` has that a migration with
`--fused keep` is that of the one matrix, `test_dit_migration.py` that one without is of the parts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

WIDTH, PARTS, RANK, DRAWS = 96, 3, 8, 3
RULE = ("energy", 0.9)
AWAY = (0.02, 0.1, 0.3)
"""Norm of what lies between source and target, relative to the source."""

SPECTRA = {
    "Gaussian": None,
    "exp(-i / 30)": np.exp(-np.arange(WIDTH) / 30),
    "1 / i": 1 / np.arange(1.0, WIDTH + 1),
}
PAGE = Path(__file__).parents[2] / "docs" / "dit.md"


def part(rng: np.random.Generator, values: np.ndarray | None) -> np.ndarray:
    """A square weight with these singular values and any vectors; Gaussian numbers without."""
    made = rng.standard_normal((WIDTH, WIDTH))
    if values is None:
        return made
    left, _ = np.linalg.qr(made)
    right, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    return (left * values) @ right.T


def projected(
    method: Any, source: np.ndarray, target: np.ndarray, update: np.ndarray
) -> np.ndarray:
    spectra = [np.linalg.svd(weight, compute_uv=False) for weight in (source, target)]
    ranks = reference.pair_ranks(spectra[0], spectra[1], RULE)
    return reference.project(method, reference.pair_of_weights(source, target, *ranks), update)


def agreement(method: str, values: np.ndarray | None, away: float, seed: int) -> float:
    """Cosine between an update moved as one matrix, and part by part."""
    rng = np.random.default_rng(seed)
    source = np.concatenate([part(rng, values) for _ in range(PARTS)])
    noise = rng.standard_normal(source.shape)
    target = source + away * np.linalg.norm(source) / np.linalg.norm(noise) * noise
    update = rng.standard_normal((len(source), RANK)) @ rng.standard_normal((RANK, WIDTH))
    whole = projected(method, source, target, update)
    rows = np.split(source, PARTS), np.split(target, PARTS), np.split(update, PARTS)
    parts = np.concatenate([projected(method, *one) for one in zip(*rows, strict=True)])
    return float(np.sum(whole * parts) / np.linalg.norm(whole) / np.linalg.norm(parts))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", ["prolora", "prolora-full"])
def test_the_page_has_how_far_both_ways_agree(method: str, spectrum: str) -> None:
    values = SPECTRA[spectrum]
    found = [
        float(np.mean([agreement(method, values, away, seed) for seed in range(DRAWS)]))
        for away in AWAY
    ]
    start = f"| {spectrum} | `{method}` | "
    print(f"\n{start}{' | '.join(f'{cosine:.2f}' for cosine in found)} |")
    (said,) = (line for line in PAGE.read_text().splitlines() if line.startswith(start))
    told = [float(cell) for cell in said.strip("| ").split(" | ")[2:]]
    np.testing.assert_allclose(found, told, atol=0.006)  # they are rounded
    # The further apart the models are, the more it matters; the paper's method always minds.
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.98 if method == "prolora-full" else found[0] < 0.95
