"""Where a module of a UNet stands, read off its path: by the tests alone."""

import re
from dataclasses import dataclass

_PATH = re.compile(
    r"unet\.(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(\w+)\.(\d+)"
    r"(?:\.transformer_blocks\.(\d+))?\.(.+)"
)


@dataclass(frozen=True)
class UNetPlace:
    """A module inside a slot."""

    direction: str
    stage: int
    kind: str
    slot: int
    block: int | None
    role: str

    @property
    def stage_path(self) -> str:
        number = "" if self.direction == "mid_block" else f".{self.stage}"
        return f"unet.{self.direction}{number}"

    @property
    def slot_path(self) -> str:
        return f"{self.stage_path}.{self.kind}.{self.slot}"

    @property
    def path(self) -> str:
        inner = "" if self.block is None else f".transformer_blocks.{self.block}"
        return f"{self.slot_path}{inner}.{self.role}"


def unet_place(path: str) -> UNetPlace | None:
    """The place of a module; None outside of slots."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    direction, stage, kind, slot, block, role = found.groups()
    return UNetPlace(
        direction, int(stage or 0), kind, int(slot), None if block is None else int(block), role
    )
