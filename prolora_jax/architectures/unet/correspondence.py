"""Which layer of its teacher each layer of a pruned model comes from, where that is published.

Equal names do not say it: the second resnet of a BK-SDM up block is its teacher's third. Here is
data, one `Correspondence` per pair of architectures; a caller may hand over a table of its own.
Where the teacher's layer is not known (SSD-1B, Vega), weights have to tell: see `matching`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.spec import BaseModelSpec


@dataclass(frozen=True)
class Correspondence:
    """Where the layers of a target come from in its source.

    Attributes:
        moved: source prefix by target prefix, of dotted paths without component, for layers whose
            name differs in the source. The longest prefix that fits a path counts.
        published: whether the authors' code says so; else it was only seen that all shapes agree.
    """

    moved: Mapping[str, str]
    published: bool

    def source_path(self, path: str) -> str:
        """The source's path of a target's UNet module; the same path where nothing moved."""
        inner = path.removeprefix(UNET)
        fitting = [prefix for prefix in self.moved if f"{inner}.".startswith(f"{prefix}.")]
        if inner == path or not fitting:
            return path
        prefix = max(fitting, key=len)
        return f"{UNET}{self.moved[prefix]}{inner.removeprefix(prefix)}"


def _up_blocks(sources: Mapping[int, int]) -> dict[str, str]:
    """Moves for up blocks that keep the first and the third of three layers.

    Args:
        sources: source block by target block.
    """
    moved = {f"up_blocks.{i}": f"up_blocks.{j}" for i, j in sources.items()}
    for i, j in sources.items():
        for layers in ("resnets", "attentions"):
            moved[f"up_blocks.{i}.{layers}.1"] = f"up_blocks.{j}.{layers}.2"
    return moved


_FOUR = Correspondence(_up_blocks({0: 0, 1: 1, 2: 2, 3: 3}), published=True)
# The teacher's innermost blocks are gone, so up block 0 is its up block 1.
_TINY = Correspondence(_up_blocks({0: 1, 1: 2, 2: 3}), published=True)
_KOALA = Correspondence(_up_blocks({0: 0, 1: 1, 2: 2}), published=False)

CORRESPONDENCES: Mapping[tuple[str, str], Correspondence] = {
    ("sd15", "bk-sdm-base"): _FOUR,
    ("sd15", "bk-sdm-small"): _FOUR,
    ("sd15", "bk-sdm-tiny"): _TINY,
    ("sdxl", "koala-700m"): _KOALA,
    ("sdxl", "koala-1b"): _KOALA,
}
"""By ids of source and target (`BaseModelSpec.architecture`)."""


def source_paths(
    source: BaseModelSpec,
    target: BaseModelSpec,
    correspondences: Mapping[tuple[str, str], Correspondence] = CORRESPONDENCES,
) -> dict[str, str] | None:
    """Source path by target path, where it is known which layer comes from which.

    A student is related to its teacher in either direction; two students of one teacher are not.

    Args:
        source: modules of the source base.
        target: modules of the target base.
        correspondences: the data to look in.

    Returns:
        Every UNet module of the target that has a source module of its shape; None when nothing
        is known of these two architectures.
    """
    if source.architecture is None or target.architecture is None:
        return None
    known = correspondences.get((source.architecture, target.architecture))
    if known is not None:
        pairs = {path: known.source_path(path) for path in target.component("unet")}
    else:
        known = correspondences.get((target.architecture, source.architecture))
        if known is None:
            return None
        pairs = {known.source_path(path): path for path in source.component("unet")}
    return {
        path: source_path
        for path, source_path in pairs.items()
        if source_path in source.modules
        and path in target.modules
        and source.modules[source_path].shape == target.modules[path].shape
    }
