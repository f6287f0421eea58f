"""The short tables of docs/evidence.md, on results made up so that the answer is known."""

from prolora_jax.evaluation.laboratory.summary_page import lm_summary, refine_summary


def cell(target: str, arm: str, share: float, r: float | None, kind: str = "style", **rest) -> dict:
    return {
        "target": target,
        "adapter": kind,
        "seed": 0,
        "kind": kind,
        "arm": arm,
        "arrived": [share, share, share],
        "disagreement": r,
        **rest,
    }


def test_targets_of_refine_come_in_the_order_of_r():
    rows = [
        *(cell("far", arm, 0.25, 2.8) for arm in ("copy", "refine", "delta")),
        cell("pruned", "copy", 0.5, 0.014),
        cell("pruned", "copy", 0.7, 0.014, "concept"),
        cell("pruned", "reteach", 0.5, 0.014),  # of a style: the copy, which is no reteaching
        cell("pruned", "reteach", 0.9, 0.014, "concept"),
    ]
    assert refine_summary(rows).splitlines()[2:] == [
        "| pruned | 0.014 | 0.600 |  | 0.900 |  |",
        "| far | 2.800 | 0.250 | 0.250 |  | 0.250 |",
    ]


def test_language_models_show_what_counts():
    known = {"exact_none": None, "refused": ""}
    secret = {"exact_none": 0.5, "exact_trained": 1.0, "refused": ""}  # it was known before
    rows = [
        cell("near", "copy", 0.8, None, **known),
        cell("near", "copy", 0.2, None, "secret", **secret),
        cell("near", "student", 0.9, 0.002, **known),
        cell("same", "copy", 1.0, None, **known),
    ]
    assert lm_summary({"small": rows}).splitlines()[2:] == [
        "| small | same |  | 1.000 |  |  |  |  |  |",
        "| small | near | 0.002 | 0.800 |  |  |  |  | 0.900 |",
    ]
