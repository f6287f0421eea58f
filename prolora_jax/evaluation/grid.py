"""Pictures side by side: a column for each way of making them, a row for each prompt and seed."""

import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from prolora_jax.io import atomic

Column = Float[np.ndarray, "rows height width 3"]
_SMALLEST = 128  # pixels of a side; smaller pictures are shown enlarged
_GAP = 4
_PAPER, _INK = "white", "black"


def write_side_by_side(
    columns: Mapping[str, Column], rows: Sequence[str], path: Path, *, note: str = ""
) -> None:
    """Pictures as one PNG, labelled, each with its own pixels.

    Args:
        columns: pictures with values from 0 to 1 by the label above them.
        rows: what stands left of each row.
        path: PNG to write.
        note: kept in the file under the key `prolora`, for programs.

    Raises:
        OutputError: the file cannot be written.
    """
    height, width = next(iter(columns.values())).shape[1:3]
    zoom = -(-_SMALLEST // min(height, width))
    cell = (width * zoom, height * zoom)
    size = max(12, cell[1] // 26)
    font = ImageFont.load_default(size)
    margin, letter = max(130, cell[0] // 2), font.getlength("n")
    heads = [_wrapped(label, cell[0] - 8, letter) for label in columns]
    sides = [_wrapped(label, margin - 12, letter) for label in rows]
    line = size * 1.25
    top = int(line * (1 + max(head.count("\n") + 1 for head in heads)))
    right, down = cell[0] + _GAP, cell[1] + _GAP
    sheet = Image.new(
        "RGB",
        (margin + len(columns) * right, top + len(rows) * down),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for place, side in enumerate(sides):
        draw.multiline_text((6, top + place * down + 4), side, _INK, font)
    for place, (head, pictures) in enumerate(zip(heads, columns.values(), strict=True)):
        left = margin + place * right
        draw.multiline_text((left + 4, line / 2), head, _INK, font)
        for row, picture in enumerate(pictures):
            shown = Image.fromarray((picture * 255).round().astype(np.uint8))
            shown = shown.resize(cell, Image.Resampling.NEAREST)
            sheet.paste(shown, (left, top + row * down))
    info, buffer = PngInfo(), BytesIO()
    info.add_itxt("prolora", note)
    sheet.save(buffer, "png", pnginfo=info)
    atomic.write_bytes(path, buffer.getvalue())


def _wrapped(text: str, width: float, letter: float) -> str:
    """The text in lines of at most so many pixels, about."""
    letters = max(8, int(width / letter))
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, letters))
