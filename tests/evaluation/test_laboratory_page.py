"""The made part of docs/evidence.md and its plots, from results with known numbers."""

from pathlib import Path

import pytest

from prolora_jax.evaluation.laboratory import evidence_page, plots
from prolora_jax.evaluation.laboratory.beyond import BEYOND
from prolora_jax.evaluation.laboratory.sweep import Arm, Sweep
from prolora_jax.evaluation.laboratory.verdicts import RELATIVES
from prolora_jax.io.documents import read_yaml

CONFIGS = Path(__file__).parents[2] / "configs" / "laboratory"
LEVEL = {"copy": 0.9, "prolora-full": 0.895, "rotation": 0.8, "prolora": 0.6, "none": 0.0}


def made_up(name: str) -> list[dict]:
    """A row for every arm, target, adapter and seed of a shipped sweep."""
    sweep = read_yaml(CONFIGS / f"{name}.yaml", Sweep)
    return [
        row(arm, target, adapter, seed)
        for target in sweep.targets
        for adapter in sweep.adapters
        for seed in sweep.seeds
        for arm in sweep.arms()
    ]


def row(arm: Arm, target: str, adapter: str, seed: int) -> dict:
    method = arm.options.get("method", arm.control)
    share = LEVEL.get(method, 0.5) if target in RELATIVES else 0.0
    gated = arm.options.get("min_similarity", 0.8) > 0 and method != "copy"
    skipped = 90 if gated and target == "stranger" else 0
    return {
        "arm": arm.name,
        "options": arm.options,
        "control": arm.control,
        "target": target,
        "adapter": adapter,
        "kind": "concept" if adapter == "cross" else "style",
        "seed": seed,
        "arrived": [share, share, share],
        "arrived_at_best": [share, share, share],
        "arrived_at_norm": [share, share, share],
        "best_scale": 1.0,
        "norm": 2.0,
        "own_loss": 1.0 if skipped else 1.5,
        "none": {"own_loss": 1.0},
        "skipped": skipped,
        "moved": 95 - skipped,
        "phi_half": 0.9 if target in RELATIVES else 0.5,
        "samples": {"effect_mmd": 0.1, "own_mmd": 0.2, "fidelity": 0.9, "diversity": 1.0},
    }


def test_headline_follows_the_rules():
    page = evidence_page.headline(made_up("headline"))
    assert "Recommendation: **`copy`**" in page
    # Equal to copy on relatives within .01, and its gate leaves the stranger as it was.
    assert "Default by the rule: **`prolora-full`**" in page
    assert "| prolora-full | -0.005 | 0.0000 |" in page
    assert "| prolora | -0.300 [-0.300, -0.300] |" in page
    assert page.count("| 0 | `copy`") == page.count("| 2 | `copy`") == 1


def test_settings_name_every_option_of_the_sweep():
    page = evidence_page.settings(made_up("sweep"), "prolora-full")
    assert "| by the rule | energy=0.9 |" in page
    assert "| prolora-full | corrected | 0.9 | +0.000 | 95% |" in page
    for option in ("--rescale norm", "--gate-sides left", "--below copy", "--match module"):
        assert option in page


def test_rules_without_results_are_named_and_not_judged():
    every = made_up("sweep")
    assert evidence_page.swept(every) == evidence_page.RULES
    assert "Not swept yet" not in evidence_page.settings(every, "prolora-full")
    lacking = [r for r in every if not r["arm"].startswith("rotation basis_rank=gap")]
    assert evidence_page.swept(lacking) == tuple(r for r in evidence_page.RULES if r != "gap")
    page = evidence_page.settings(lacking, "prolora-full")
    assert "Not swept yet, and so neither won nor lost: `gap`." in page
    assert "| gap |" not in page


def test_other_tables():
    assert "| copy | 0.000 " in evidence_page.identity(made_up("identity"))
    page = evidence_page.samples(made_up("samples"))
    assert page.count("| none |") == 4
    assert "samples.fidelity" in page


def test_beyond_names_every_way_and_the_verdict():
    page = evidence_page.beyond(made_up("beyond"))
    for way in BEYOND:
        assert way in page
    assert "`auto` **does not ship**" in page


@pytest.mark.parametrize("kind", ["arms", "distance", "ranks"])
def test_plots_are_pictures(kind: str, tmp_path: Path):
    path, targets = tmp_path / "plot.png", (*RELATIVES, "stranger")
    arms = ["copy", *(evidence_page.open_arm(m) for m in evidence_page.METHODS)]
    if kind == "ranks":
        rows, rules = made_up("sweep"), evidence_page.RULES
        plots.share_by_rank(
            rows, evidence_page.METHODS, rules, targets, evidence_page.open_arm, path
        )
    elif kind == "arms":
        plots.share_by_arm(made_up("headline"), arms, targets, path)
    else:
        plots.share_by_distance(made_up("headline"), arms, path)
    assert path.read_bytes().startswith(b"\x89PNG")
