"""Write the tables and plots of docs/evidence.md from the results that stand in docs/evidence.

python scripts/report_evidence.py --from lab    take the results of a laboratory's folder first
python scripts/report_evidence.py               from the results that are there
python scripts/report_evidence.py --lm lab-lm     the same of language models (--lm-smollm2, too)
python scripts/report_evidence.py --check       exit 1 when the page is not up to date
"""

import argparse
from pathlib import Path
from typing import Any

from prolora_jax.evaluation.laboratory import (
    evidence_page,
    pictures_page,
    plots,
    refine_page,
    summary_page,
    verdicts,
)
from prolora_jax.evaluation.laboratory.lm.page import lm_page
from prolora_jax.evaluation.laboratory.lm.trials import lm_results
from prolora_jax.io import atomic
from prolora_jax.io.documents import read_lines, write_lines

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS, IMAGES = (ROOT / "docs" / name for name in ("evidence.md", "evidence", "images"))
WRITERS = {
    "lm": ("small", "Small language models, trained from nothing"),
    "lm_smollm2": (
        "SmolLM2",
        "SmolLM2-135M-Instruct, unpacked from Q4_1, and relatives made of it",
    ),
}
"""Results of scripts/run_lm_evidence.py, and what they are called in lines and over tables."""
SWEEPS = ("headline", "sweep", "identity", "samples", "beyond", "refine_sweep", "refine_samples")
GATED = ("prolora", "prolora-full", "rotation")


def slim(value: Any) -> Any:
    """Numbers with six digits, and no keys that only resuming needs."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [slim(item) for item in value]
    if isinstance(value, dict):
        return {name: slim(item) for name, item in value.items() if name != "key"}
    return value


def made() -> str:
    """The results' part of the page."""
    rows = {name: read_lines(RESULTS / f"{name}.jsonl") for name in SWEEPS}
    method, _ = verdicts.default_method(rows["headline"], GATED)
    return "\n\n".join(
        (
            evidence_page.headline(rows["headline"]),
            evidence_page.settings(rows["sweep"], method),
            evidence_page.identity(rows["identity"]),
            evidence_page.samples(rows["samples"]),
            evidence_page.beyond(rows["beyond"]),
            refine_page.refine(rows["refine_sweep"]),
            "### Rule 14: pictures beside losses",
            pictures_page.pictures(rows["refine_samples"]),
            *(lm_page(WRITERS[name][1], found) for name, found in writers()),
        )
    )


def sections() -> dict[str, str]:
    """The parts of the page that are made from results, by name."""
    return {
        "refine in short": summary_page.refine_summary(read_lines(RESULTS / "refine_sweep.jsonl")),
        "language models in short": summary_page.lm_summary(
            {WRITERS[name][0]: rows for name, rows in writers()}
        ),
        "results": made(),
    }


def placed(page: str, name: str, text: str) -> str:
    """The page with one of its made parts anew, between its two comments."""
    begin = f"<!-- {name}: made by scripts/report_evidence.py -->\n"
    end = f"<!-- end of {name} -->\n"
    head, begun, rest = page.partition(begin)
    _, ended, tail = rest.partition(end)
    if not (begun and ended):
        raise SystemExit(f"{PAGE.name} lacks the comment {(begin if not begun else end).strip()}")
    return f"{head}{begin}{text}\n{end}{tail}"


def writers() -> list[tuple[str, list[Any]]]:
    """Results about language models that are there."""
    found = [(name, read_lines(RESULTS / f"{name}.jsonl")) for name in WRITERS]
    return [(name, rows) for name, rows in found if rows]


def draw() -> None:
    """The plots."""
    rows = read_lines(RESULTS / "headline.jsonl")
    arms = ["copy", *(evidence_page.open_arm(m) for m in evidence_page.METHODS)]
    targets = (*verdicts.RELATIVES, "stranger")
    plots.share_by_arm(rows, [*arms, "random-subspace 0.5"], targets, IMAGES / "evidence-arms.png")
    plots.share_by_distance(rows, arms, IMAGES / "evidence-distance.png")
    settings = read_lines(RESULTS / "sweep.jsonl")
    plots.share_by_rank(
        settings,
        evidence_page.METHODS,
        evidence_page.swept(settings),
        targets,
        evidence_page.open_arm,
        IMAGES / "evidence-ranks.png",
    )


def main() -> None:
    """Take results, write the page, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="lab", type=Path, help="folder of the laboratory")
    for name in WRITERS:
        told = f"folder of {name}.yaml, whose results are taken"
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=Path, help=told)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for name in WRITERS:
        folder = getattr(args, name)
        if folder:
            rows = [slim(row) for row in lm_results(folder)]
            write_lines(RESULTS / f"{name}.jsonl", rows)
    if args.lab:
        for name in SWEEPS:
            file = args.lab / "results" / f"{name}.jsonl"
            if not file.exists():  # the rules of `refine` have a recipe of their own
                print(f"{file}: not there; {name} stays as it is")
                continue
            rows = read_lines(file)
            write_lines(RESULTS / f"{name}.jsonl", [slim(row) for row in rows])
    page = new = PAGE.read_text()
    for name, text in sections().items():
        new = placed(new, name, text)
    if args.check:
        raise SystemExit(0 if new == page else f"{PAGE.name} is not up to date: run this script")
    atomic.write_text(PAGE, new)
    draw()


if __name__ == "__main__":
    main()
