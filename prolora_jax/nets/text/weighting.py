"""Weights in prompts: `(ink:1.2)`, in the notation that web interfaces have made usual."""

import re
from typing import Literal, NamedTuple

Weighting = Literal["off", "numbers", "all"]
"""Which brackets weigh: none; those that say a number, `(ink:1.2)`; or all, `(ink)` and `[ink]`."""

UP, DOWN = 1.1, 1 / 1.1
"""What a pair of brackets without a number multiplies by: round ones, square ones."""

_MARKS = re.compile(
    r"(?P<escaped>\\[\\()\[\]])|(?P<weight>:\s*(?P<number>[+-]?(?:\d{1,6}(?:\.\d{0,9})?|\.\d{1,9}))\s*\))"
    r"|(?P<bracket>[()\[\]])"
)


class PromptPiece(NamedTuple):
    """A part of a prompt.

    Attributes:
        text: without the brackets that weigh it.
        weight: 1 for what is not in brackets.
    """

    text: str
    weight: float


def weighed(prompt: str, weighting: Weighting) -> tuple[PromptPiece, ...]:
    r"""The parts of a prompt, each with its weight.

    Weights of brackets in brackets multiply. A backslash before a bracket or a backslash makes it
    an ordinary character, `\(`. With `all` an opening bracket that is never closed weighs
    everything behind it, and with `numbers` it is an ordinary character; a closing one without an
    opening one always is.

    Args:
        prompt: as it was written.
        weighting: which brackets weigh.

    Returns:
        Parts of the same weight together, none of them empty; () for an empty prompt.
    """
    if weighting == "off":
        return (PromptPiece(prompt, 1.0),) if prompt else ()
    pieces: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        """Weigh what stands since a bracket, which is none of the text then."""
        place = opened[kind].pop()
        pieces[place][0] = ""
        for piece in pieces[place:]:
            piece[1] *= factor

    end = 0
    for mark in _MARKS.finditer(prompt):
        pieces.append([prompt[end : mark.start()], 1.0])
        end, text = mark.end(), mark[0]
        if mark["weight"] and opened["("]:
            close("(", float(mark["number"]))
        elif mark["escaped"]:
            pieces.append([text[1:], 1.0])
        elif text == "(" or (text == "[" and weighting == "all"):
            opened[text].append(len(pieces))
            pieces.append([text, 1.0])
        elif text == ")" and opened["("]:
            if weighting == "all":
                close("(", UP)
            else:
                opened["("].pop()
                pieces.append([text, 1.0])
        elif text == "]" and opened["["]:
            close("[", DOWN)
        else:
            pieces.append([text, 1.0])
    pieces.append([prompt[end:], 1.0])
    if weighting == "all":
        for kind, factor in (("(", UP), ("[", DOWN)):
            while opened[kind]:
                close(kind, factor)
    return _joined(pieces)


def _joined(pieces: list[list]) -> tuple[PromptPiece, ...]:
    """Neighbours of one weight as one: words at a border are then those of the whole text."""
    found: list[PromptPiece] = []
    for text, weight in pieces:
        if found and found[-1].weight == weight:
            found[-1] = PromptPiece(found[-1].text + text, weight)
        elif text:
            found.append(PromptPiece(text, weight))
    return tuple(found)
