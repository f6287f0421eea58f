"""The notation of weights in prompts: a table of prompts, and what has none of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prolora_jax.nets.text.weighting import DOWN, UP, Weighting, weighed

KINDS: tuple[Weighting, ...] = ("off", "numbers", "all")

# Prompt, with `numbers`, with `all`; None where both say the same.
TABLE = [
    ("", [], None),
    ("ink on paper", [("ink on paper", 1)], None),
    ("(ink:1.2) on paper", [("ink", 1.2), (" on paper", 1)], None),
    ("an (ink drawing : .5 ) here", [("an ", 1), ("ink drawing ", 0.5), (" here", 1)], None),
    ("(a:0)(b:-2.)(c:+1)", [("a", 0), ("b", -2), ("c", 1)], None),
    ("((a:2) b:1.5)", [("a", 3), (" b", 1.5)], None),
    ("(a:1.2", [("(a:1.2", 1)], [("a:1.2", UP)]),
    ("a:1.2)", [("a:1.2)", 1)], None),
    ("a) ] :3) b", [("a) ] :3) b", 1)], None),
    ("a (b) c", [("a (b) c", 1)], [("a ", 1), ("b", UP), (" c", 1)]),
    ("((a)) [b]", [("((a)) [b]", 1)], [("a", UP * UP), (" ", 1), ("b", DOWN)]),
    ("(a (b) c:1.5)", [("a (b) c", 1.5)], [("a ", 1.5), ("b", UP * 1.5), (" c", 1.5)]),
    ("(a:1.5 b) (c:2)", [("(a:1.5 b) ", 1), ("c", 2)], [("a:1.5 b", UP), (" ", 1), ("c", 2)]),
    ("[a:1.5]", [("[a:1.5]", 1)], [("a:1.5", DOWN)]),
    (
        "smile :( and (more",
        [("smile :( and (more", 1)],
        [("smile :", 1), (" and ", UP), ("more", UP * UP)],
    ),
    (r"ink \(a:1.2\) \[b\] \\", [("ink (a:1.2) [b] \\", 1)], None),
    (r"(ink \(a\):1.2)", [("ink (a)", 1.2)], None),
    (r"C:\n \a", [(r"C:\n \a", 1)], None),
    ("(a:1e3) (b:1.2.3)", [("(a:1e3) (b:1.2.3)", 1)], [("a:1e3", UP), (" ", 1), ("b:1.2.3", UP)]),
    ("(:1.2)(:3)x", [("x", 1)], None),
    ("(a:12345678)", [("(a:12345678)", 1)], [("a:12345678", UP)]),
]


@pytest.mark.parametrize(("prompt", "numbers", "everything"), TABLE)
def test_table(prompt, numbers, everything):
    for weighting, expected in zip(KINDS[1:], (numbers, everything or numbers), strict=True):
        found = weighed(prompt, weighting)
        assert [piece.text for piece in found] == [text for text, _ in expected], weighting
        assert [piece.weight for piece in found] == pytest.approx([w for _, w in expected])
    assert weighed(prompt, "off") == (((prompt, 1),) if prompt else ())


@given(st.text(st.sampled_from("ab :.12()[]\\"), max_size=20))
def test_nothing_but_marks_is_lost(prompt):
    for weighting in KINDS:
        pieces = weighed(prompt, weighting)
        assert all(piece.text for piece in pieces)
        assert [a for a, b in zip(pieces, pieces[1:], strict=False) if a.weight == b.weight] == []
        kept = "".join(piece.text for piece in pieces)
        assert [c for c in kept if c in "ab"] == [c for c in prompt if c in "ab"]


@given(st.text(st.characters(exclude_characters="()[]\\"), min_size=1))
def test_without_brackets_nothing_changes(text):
    assert weighed(text, "all") == weighed(text, "numbers") == ((text, 1),)
