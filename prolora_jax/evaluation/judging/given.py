"""Folders of pictures that another program drew, as arms."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.judging.request import DrawnSet, Picture
from prolora_jax.io.judging.pictures import picture_files


@dataclass(frozen=True)
class GivenSet(DrawnSet):
    """Pictures that are there already.

    Attributes:
        files: by arm, prompt by prompt.
        told: whether prompts were given.
    """

    told: bool = True
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    def path(self, picture: Picture) -> Path:
        """Where a picture is."""
        return self.files[picture.arm][picture.prompt * len(self.seeds) + picture.seed]


def given_set(folders: tuple[Path, ...], prompts: tuple[str, ...]) -> GivenSet:
    """Folders as arms, named as they are; pictures in the order of their names.

    Args:
        folders: one for each arm, with as many pictures each: those of the first prompt first.
        prompts: what they show; empty where no metric asks, and then each picture is a prompt of
            its own.

    Raises:
        UsageError: a folder has no picture, two have one name, or numbers do not go together.
    """
    files: dict[str, tuple[Path, ...]] = {}
    for folder in folders:
        name = Path(os.path.abspath(folder)).name
        if name in files:
            raise UsageError(
                f"--pictures {folder}: found two folders called {name}; expected a name for each "
                f"arm; rename one",
                code=Refusal.BAD_OPTION,
            )
        files[name] = tuple(picture_files(folder))
    counts = {name: len(found) for name, found in files.items()}
    most = max(counts.values(), default=0)
    shown = prompts or tuple(str(number) for number in range(1, most + 1))
    for name, count in counts.items():
        if count != most or count % len(shown):
            raise UsageError(
                f"--pictures {name}: found {count} pictures; expected {most}, as the others have, "
                f"and as many for each of {len(shown)} prompts; complete the folder",
                code=Refusal.BAD_OPTION,
            )
    seeds = tuple(range(most // len(shown)))
    first = folders[0] if folders else Path()
    return GivenSet(first, tuple(files), shown, seeds, told=bool(prompts), files=files)
