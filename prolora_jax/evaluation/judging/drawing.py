"""The pictures of every arm, one file each: what was drawn before is kept.

A picture's file says in its text, under the key `prolora`, what it was drawn from. A run that was
killed goes on with the pictures that are missing; a picture of another prompt, adapter, base model
or setting is drawn again.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.drawer import Drawer
from prolora_jax.evaluation.judging.request import DrawnSet, Picture
from prolora_jax.io import atomic
from prolora_jax.io.judging.pictures import note_of

_NOTE = "prolora"


def is_drawn(found: DrawnSet, picture: Picture) -> bool:
    """Whether a picture is there, whole, and drawn as it is to be drawn now."""
    try:
        said = msgspec.json.decode(note_of(found.path(picture), _NOTE))
    except msgspec.DecodeError:
        return False
    return isinstance(said, dict) and said.get("key") == found.key(picture)


def missing(found: DrawnSet, arms: Sequence[str]) -> dict[str, list[Picture]]:
    """The pictures that are still to be drawn, by arm; arms without any are left out."""
    left = {arm: [p for p in found.pictures(arm) if not is_drawn(found, p)] for arm in arms}
    return {arm: pictures for arm, pictures in left.items() if pictures}


def draw_missing(
    found: DrawnSet,
    drawer: Drawer,
    left: dict[str, list[Picture]],
    progress: Progress = lambda stage, done, total: None,
) -> int:
    """Draw what is missing, prompt by prompt, each picture written when its batch is done.

    Args:
        found: names the files, prompts and settings.
        drawer: draws them; its settings are those of `found`.
        left: of `missing`.
        progress: called with the stage, and how many pictures of how many are done.

    Returns:
        How many were drawn.

    Raises:
        UsageError: a picture is of what is no number.
        OutputError: a file cannot be written.
    """
    total, done = sum(map(len, left.values())), 0
    for arm, pictures in left.items():
        for prompt in dict.fromkeys(p.prompt for p in pictures):
            some = [p for p in pictures if p.prompt == prompt]
            progress(f"drawing: {arm}", done, total)
            drawn = drawer.draw(arm, [found.prompts[prompt]], [p.seed for p in some])
            for picture, values in zip(some, drawn[0], strict=True):
                _write(found, picture, values)
            done += len(some)
    progress("drawing", done, total)
    return done


def _write(found: DrawnSet, picture: Picture, values: Float[np.ndarray, "height width 3"]) -> None:
    path = found.path(picture)
    if not np.isfinite(values).all():
        raise UsageError(
            f"{path}: the arm {picture.arm} draws what is no number; expected a picture; look at "
            f"the adapter, or compute in another --dtype",
            code=Refusal.NON_FINITE,
        )
    note = {
        "key": found.key(picture),
        "arm": picture.arm,
        "prompt": found.prompts[picture.prompt],
        "seed": picture.seed,
    }
    info, buffer = PngInfo(), BytesIO()
    info.add_itxt(_NOTE, msgspec.json.encode(note).decode())
    Image.fromarray((values * 255).round().astype(np.uint8)).save(buffer, "png", pnginfo=info)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, buffer.getvalue())


def read_pictures(found: DrawnSet, arm: str) -> list[Path]:
    """The files of an arm, prompt by prompt."""
    return [found.path(picture) for picture in found.pictures(arm)]
