"""What is to be judged, and where its pictures are."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.drawer import NONE

TRAINED, REFINE = "trained", "refine"
"""Arms with an adapter of the target for the same: trained there; made by `prolora refine`."""

OPTIONS = {TRAINED: "--trained", REFINE: "--refined"}
"""Where their files are named."""

_NAMELESS = {"pytorch_lora_weights", "adapter_model"}
"""What libraries call every adapter: its folder has the name."""

_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


class Picture(NamedTuple):
    """A picture of an arm.

    Attributes:
        arm: that drew it.
        prompt: its place among the prompts.
        seed: of its noise.
    """

    arm: str
    prompt: int
    seed: int


@dataclass(frozen=True)
class Subject:
    """An adapter that is judged.

    Attributes:
        name: of its folder of pictures; plain letters.
        file: as it was trained on the source.
        own: adapters of the target for the same, by arm: `trained`, `refine`.
        scale: strength of all.
        refines: whether `refine` is no file of the user's, but made here (`taught.py`).
    """

    name: str
    file: Path
    own: Mapping[str, Path]
    scale: float = 1.0
    refines: bool = False


@dataclass(frozen=True)
class DrawnSet:
    """The pictures of a subject: arms x prompts x seeds, under one folder.

    Attributes:
        folder: of the subject.
        arms: in the order that tables have.
        prompts: what each picture shows, by its place.
        seeds: of the noise.
        settings: what every picture was drawn with, as JSON has it: two sets with the same are
            comparable.
        given: what an arm was drawn from beside them: hashes of files, options.
    """

    folder: Path
    arms: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)

    def pictures(self, arm: str) -> Iterator[Picture]:
        """All of an arm, prompt by prompt."""
        for place in range(len(self.prompts)):
            for seed in self.seeds:
                yield Picture(arm, place, seed)

    def path(self, picture: Picture) -> Path:
        """Where a picture is; those without an adapter are there once for all subjects."""
        folder = self.folder.parent if picture.arm == NONE else self.folder
        return folder / picture.arm / f"p{picture.prompt:03d}-s{picture.seed}.png"

    def key(self, picture: Picture) -> str:
        """What tells whether a file shows this picture, drawn as it is to be drawn now."""
        given = None if picture.arm == NONE else self.given.get(picture.arm)
        said = self.prompts[picture.prompt], picture.seed, picture.arm, given, dict(self.settings)
        return sha256(msgspec.json.encode(said, order="sorted")).hexdigest()[:32]


def subjects_of(
    files: tuple[Path, ...],
    own: Mapping[str, tuple[Path, ...]],
    scales: tuple[float, ...] = (),
) -> list[Subject]:
    """The adapters that are judged, each by itself.

    Args:
        files: as they were trained on the source.
        own: adapters of the target for the same, in their order, by arm; empty for none.
        scales: strengths, one for each; empty for 1.

    Raises:
        UsageError: there is no adapter, or not one of the others for each.
    """
    if not files:
        raise UsageError("--lora: found none; expected an adapter or more", code=Refusal.BAD_OPTION)
    options = {OPTIONS[arm]: given for arm, given in own.items()} | {"--scale": scales}
    for option, given in options.items():
        if given and len(given) != len(files):
            raise UsageError(
                f"{option}: found {len(given)} for {len(files)} adapters; expected one for each "
                f"--lora, in their order, or none at all",
                code=Refusal.BAD_OPTION,
            )
    names: dict[str, None] = {}
    for file in files:
        said = file.name.removesuffix(".safetensors")
        if said in _NAMELESS:
            said = file.absolute().parent.name
        stem = _PLAIN.sub("-", said).strip("-.") or "adapter"
        name, number = stem, 2
        while name in names or name == NONE:
            name, number = f"{stem}-{number}", number + 1
        names[name] = None
    strengths = scales or (1.0,) * len(files)
    return [
        Subject(name, file, {arm: given[i] for arm, given in own.items() if given}, strengths[i])
        for i, (name, file) in enumerate(zip(names, files, strict=True))
    ]
