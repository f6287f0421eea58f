"""Small kohya adapters on the toy pair's source, of any ranks and roles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from toy_pair import SOURCE

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.io.adapters.files import save_adapter

SPEC = spec_from_config(SOURCE, name="sdxl-like")


def write(
    path: Path,
    seed: int,
    ranks: Sequence[int],
    roles: Sequence[str] = ("to_q", "to_v"),
    *,
    alpha: float = 1.0,
    dtype: type = np.float16,
    format: str = "kohya-ldm",
):
    """An adapter, kohya's for one; its modules take the ranks in turn."""
    rng = np.random.default_rng(seed)
    modules = []
    for spec in SPEC.modules.values():
        if spec.kind_is("attn") and spec.path.endswith(tuple(roles)):
            (out, width), rank = spec.matrix_shape, ranks[len(modules) % len(ranks)]
            down = rng.normal(size=(rank, width)).astype(dtype)
            up = rng.normal(size=(out, rank)).astype(dtype)
            modules.append(LoraModule(spec.path, down, up, alpha=alpha))
    save_adapter(Adapter(tuple(modules), format), path, base=SPEC)
    return path
