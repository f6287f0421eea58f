"""What docs/benchmarks.md says of refinements is what the scripts wrote, and fits 16 GB."""

import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["refine_sdxl", "refine_sd"])
def test_every_phase_fits_16_gb_and_stands_on_the_page(name: str):
    found = json.loads((DOCS / "benchmarks" / f"{name}.json").read_bytes())
    page = (DOCS / "benchmarks.md").read_text()
    assert len(found["programs"]) == 7  # three speakers draw and answer, and the student learns
    for who, one in found["programs"].items():
        assert one["bytes"] < 16e9, who
    assert f"**{found['programs']['student']['bytes'] / 1e9:.2f}**" in page
    for minutes in found["predicted"]["minutes"]["H100 SXM"].values():
        assert f"| {minutes:.1f} |" in page


def test_phases_of_the_laboratory_stand_on_the_page():
    found = json.loads((DOCS / "benchmarks" / "refine_laboratory.json").read_bytes())
    page = (DOCS / "benchmarks.md").read_text()
    for one in found.values():
        assert f"| {one['rows']} | {one['again_s']:.2f} | {one['ms_a_row']:.2f} |" in page
