"""Pictures of the page, as what a template draws: rectangles and words with places, no HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prolora_jax.architectures.stacks import place_of

CELL, GAP, LABEL, HEAD = 14, 2, 235, 60
BINS = 20
WIDTH, HEIGHT = 420, 110


@dataclass(frozen=True)
class Box:
    """A rectangle: place, size, a shade from 0 to 9, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    shade: int
    title: str


@dataclass(frozen=True)
class Word:
    """A text and where it stands."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Figure:
    """A drawing."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    rows: tuple[Word, ...] = ()
    columns: tuple[Word, ...] = ()


def heat_map(similarities: Mapping[str, tuple[float, float]]) -> Figure | None:
    """Similarity of each module: a row per block, a column per role, left and right side by side.

    Args:
        similarities: (left, right) by target path.

    Returns:
        None when there is nothing to draw.
    """
    cells: dict[str, dict[str, tuple[float, float]]] = {}
    for path, sides in similarities.items():
        block, role = _block_and_role(path)
        cells.setdefault(block, {})[role] = sides
    if not cells:
        return None
    roles = sorted({role for row in cells.values() for role in row})
    boxes, pitch = [], 2 * CELL + GAP
    blocks = sorted(cells, key=_network_order)
    for line, block in enumerate(blocks):
        for column, role in enumerate(roles):
            for side, value in enumerate(cells[block].get(role, ())):
                x = LABEL + column * (pitch + GAP) + side * (CELL + 1)
                title = f"{block}.{role} {('left', 'right')[side]}: {value:.3f}"
                boxes.append(Box(x, HEAD + line * (CELL + 1), CELL, CELL, _shade(value), title))
    words = [Word(0, HEAD + n * (CELL + 1) + CELL - 3, _short(b)) for n, b in enumerate(blocks)]
    heads = [Word(LABEL + n * (pitch + GAP) + CELL, HEAD - 6, r) for n, r in enumerate(roles)]
    width = LABEL + len(roles) * (pitch + GAP) + HEAD
    return Figure(
        width, HEAD + len(blocks) * (CELL + 1) + 4, tuple(boxes), tuple(words), tuple(heads)
    )


def histogram(values: Sequence[float], unit: str = "files") -> Figure | None:
    """How values from 0 to 1 are spread.

    Args:
        values: any number of them.
        unit: what is counted.

    Returns:
        None when there is none.
    """
    if not values:
        return None
    counts = [0] * BINS
    for value in values:
        counts[min(int(min(max(value, 0.0), 1.0) * BINS), BINS - 1)] += 1
    tallest, step = max(counts), WIDTH / BINS
    boxes = []
    for place, count in enumerate(counts):
        tall = HEIGHT * count / tallest
        low, high = place / BINS, (place + 1) / BINS
        title = f"{low:.0%} to {high:.0%}: {count} {unit}"
        boxes.append(Box(place * step + 1, HEIGHT - tall + 12, step - 2, tall, 6, title))
    marks = [Word(share * WIDTH, HEIGHT + 26, f"{share:.0%}") for share in (0, 0.5, 1)]
    tops = [Word((n + 0.5) * step, b.y - 3, f"{counts[n]}") for n, b in enumerate(boxes)]
    return Figure(
        WIDTH + 20,
        HEIGHT + 30,
        tuple(boxes),
        tuple(marks),
        tuple(word for word in tops if word.text == str(tallest)),
    )


def _shade(value: float) -> int:
    return min(max(int(value * 10), 0), 9)


def _block_and_role(path: str) -> tuple[str, str]:
    place = place_of(path)
    if place is None:
        block, _, role = path.rpartition(".")
        return block, role
    return place.part, place.role


def _network_order(block: str) -> tuple[object, ...]:
    place = place_of(f"{block}.x")
    if place is None:
        return (1, block)
    (direction, _), *inside = place.order
    kinds = [stack for stack, _ in inside[:1]]  # all resnets of a direction stand together
    return (0, place.component, direction, kinds, place.order)


def _short(block: str) -> str:
    place = place_of(f"{block}.x")
    if place is None:
        return block
    words = []
    for step in place.steps:
        if not (words and step.stack.deep):  # a slot has blocks of one kind
            words.append(step.stack.name.removesuffix("_blocks"))
        words += [] if step.stack.single else [str(step.number)]
    return ".".join(words)
