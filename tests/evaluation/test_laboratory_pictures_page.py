"""Rule 14 of docs/evidence.md, on results made up so that the answer is known."""

from prolora_jax.evaluation.laboratory.pictures_page import by_cell, loses_classes, pictures


def cell(target: str, refined: tuple[float, float], kind: str = "style") -> list[dict]:
    """Rows of one cell; `copy` arrives at .5, and pictures of the adapter trained there are .95."""
    found = {
        "none": (0.0, 0.2),
        "copy": (0.5, 0.9),
        "delta": (0.97, 0.93),
        "refine": refined,
        "reteach": (0.81, 0.88),
        "trained": (1.0, 0.95),
    }
    return [
        {
            "target": target,
            "adapter": "invert",
            "seed": 0,
            "kind": kind,
            "arm": arm,
            "arrived": [share, share - 0.1, share + 0.1],
            "samples": {"effect_mmd": 0.125, "fidelity": fidelity},
        }
        for arm, (share, fidelity) in found.items()
    ]


def test_a_gain_with_blurred_classes_is_no_success():
    sharp, blurred = cell("pruned", (0.9, 0.86)), cell("stranger", (0.9, 0.84))
    worse = cell("far", (0.4, 0.1))  # it does not gain, so there is no success to be taken back
    page = pictures([*sharp, *blurred, *worse])
    assert "3 of 33 planned cells" in page
    assert "gains in loss on 2 cells" in page
    assert "blur on stranger/invert (0.84 of 0.95)" in page
    assert "pruned/invert" not in page
    assert "far/invert" not in page
    assert (
        "| stranger, invert | 0.000; 0.125; 0.20 | 0.500; 0.125; 0.90 | 0.970; 0.125; 0.93 |"
        in page
    )
    assert "On none of them" in pictures(sharp)


def test_reteach_of_a_style_is_the_copy():
    assert "| as `copy` |" in pictures(cell("pruned", (0.9, 0.9)))
    assert "| 0.810; 0.125; 0.88 |" in pictures(cell("pruned", (0.9, 0.9), kind="concept"))


def test_half_a_cell_is_not_judged():
    rows = [row for row in cell("pruned", (0.9, 0.2)) if row["arm"] != "trained"]
    assert by_cell(rows) == {}
    whole = by_cell(cell("pruned", (0.9, 0.2)))
    assert [loses_classes(arms) for arms in whole.values()] == [True]
