"""`prolora convert`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from prolora_jax.adapters.adapter import AlphaZero
from prolora_jax.cli.console import Common, out

COMMON = Common()
Format = Literal[
    "same",
    "kohya",
    "kohya-ldm",
    "kohya-diffusers",
    "comfyui",
    "diffusers",
    "diffusers-old",
    "peft",
    "flax",
    "maxdiffusion",
]


def convert(
    input: Path,
    *,
    to: Format,
    out_path: Annotated[Path, Parameter(name="--out")],
    base: Path | None = None,
    alpha_zero: AlphaZero = "refuse",
    allow_partial: Annotated[bool, Parameter(negative="")] = False,
    allow_pickle: Annotated[bool, Parameter(negative="")] = False,
    strip_metadata: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Write an adapter in another format; the update stays the same number. Needs no device.

    Args:
        input: adapter file or PEFT folder.
        to: format to write; kohya: what kohya's trainer writes for this base.
        out_path: file to write; a folder for peft, unless it ends in .safetensors.
        base: base model it is for, which knows the names; not needed for published models whose
            names leave no doubt.
        alpha_zero: what an alpha of 0 in the input means; programs disagree.
        allow_partial: write the pairs of a file that also holds whole layers (peft's
            modules_to_save), which are left out.
        allow_pickle: read a pickle, too (.pt .bin .ckpt .pth); needs torch, runs it apart.
        strip_metadata: keep no header string but prolora and format.
        overwrite: replace an existing output.
    """
    import msgspec

    from prolora_jax.adapters.formats.dumping import concrete_format
    from prolora_jax.adapters.formats.published import published_base
    from prolora_jax.adapters.formats.resolution import resolve
    from prolora_jax.io.adapters.files import load_adapter, save_adapter
    from prolora_jax.io.base_models.checkpoint import load_base_model
    from prolora_jax.plans.companions import require_no_whole_layers

    spec = None if base is None else load_base_model(base).spec
    adapter = load_adapter(input, alpha_zero=alpha_zero, allow_pickle=allow_pickle)
    spec = spec or published_base(adapter, to)
    adapter = resolve(adapter, spec)
    require_no_whole_layers(adapter, allow_partial=allow_partial)
    format = concrete_format(to, adapter, spec)
    save_adapter(
        adapter,
        out_path,
        format=format,
        base=spec,
        strip_metadata=strip_metadata,
        overwrite=overwrite,
    )
    if common.json:
        facts = {
            "input": str(input),
            "from": adapter.format,
            "output": str(out_path),
            "to": format,
            "names": spec.name,
            "modules": len(adapter.modules),
        }
        sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
    else:
        out().print(
            f"{out_path}: {len(adapter.modules)} modules, {adapter.format} -> {format}, names of "
            f"{spec.name}",
            markup=False,
        )
    return 0
