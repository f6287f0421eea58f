"""The table at the top of docs/evidence.md repeats what is made from the results further down."""

import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evidence.md").read_text()
HARM = "change of the stranger's own loss"


def table(head: str) -> dict[str, dict[str, str]]:
    """The table with this heading: the number of each cell, by row and column."""
    lines = PAGE[PAGE.index(head) :].partition("\n\n")[0].splitlines()
    columns, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return {
        re.sub(r"[`*]| \(.*", "", name): dict(
            zip(columns[1:], (cell.split(" ")[0] for cell in cells), strict=True)
        )
        for name, *cells in rows
    }


def test_shares_are_those_of_the_made_table():
    top, made = table("| method | light"), table("| arrived | far")
    assert set(top) == {"copy", "prolora-full", "rotation", "prolora"}
    for name, shares in top.items():
        harm = shares.pop("target's own loss, stranger")
        assert shares == made[name]
        assert float(harm) == float(table("| arm, gate at its default")[name][HARM])


def test_results_come_first_and_the_rules_say_when_they_were_written():
    heads = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert heads[0] == "Results"
    assert [head.partition(":")[0] for head in heads[-3:]] == [f"Appendix {x}" for x in "ABC"]
    assert "These rules were written on 2026-11-24, before" in PAGE


def test_readme_gives_the_same_shares():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (row,) = [line for line in readme.splitlines() if line.startswith("| close relatives")]
    made = table("| arrived | far")
    told = [int(number) for number in re.findall(r"\d+", row)]
    assert told == [
        round(100 * float(made[name][target]))
        for name in ("copy", "prolora")
        for target in ("light", "pruned", "far")
    ]
