"""`prolora convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from prolora_jax.adapters.adapter import AlphaZero
from prolora_jax.adapters.formats.dumping import Reader
from prolora_jax.cli.console import Common, out, write_json

if TYPE_CHECKING:
    from prolora_jax.io.adapters.whole_files import ConvertedFile

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
    "mlx",
    "gguf",
    "tunix",
    "maxtext",
    "lora",
]


def convert(
    input: Path,
    *,
    to: Format,
    out_path: Annotated[Path, Parameter(name="--out")],
    base: Path | None = None,
    factor_rank: str = "energy=0.999,max=64",
    alpha_zero: AlphaZero = "refuse",
    allow_partial: Annotated[bool, Parameter(negative="")] = False,
    allow_pickle: Annotated[bool, Parameter(negative="")] = False,
    strip_metadata: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    for_reader: Annotated[Reader | None, Parameter(name="--for")] = None,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Write an adapter in another format; the update stays the same. Or as a plain LoRA. No device.

    Args:
        input: adapter file or PEFT folder.
        to: format to write; kohya: what kohya's trainer writes for this base; lora: LoRA factors of
            an adapter of another algorithm (LoHa, LoKr, DoRA, ...), in its own format. For
            diffusion transformers: diffusers, comfyui and kohya (original names, fused layers),
            peft.
        out_path: file to write; a folder for mlx, tunix, maxtext, and for peft, unless it ends in
            .safetensors.
        base: base model it is for, which knows the names, or the id of a published one (flux1-dev),
            whose names are known; not needed for published models whose names leave no doubt.
        factor_rank: for --to lora: the share of each update's squared norm that its factors hold,
            and the largest rank; exact.
        alpha_zero: what an alpha of 0 in the input means; programs disagree.
        allow_partial: write the pairs of a file that also holds whole layers (peft's
            modules_to_save), which are left out.
        allow_pickle: read a pickle, too (.pt .bin .ckpt .pth); needs torch, runs it apart.
        strip_metadata: keep no header string but prolora and format.
        overwrite: replace an existing output.
        for_reader: vllm: a folder of peft's with one rank, padded with zeros, alpha folded in and
            no patterns, of which vLLM knows nothing; other tensors than pairs are refused.
    """
    from prolora_jax.io.adapters.whole_files import convert_file
    from prolora_jax.plans.options import factor_rank as parsed_rank

    found = convert_file(
        input,
        to,
        out_path,
        base,
        alpha_zero=alpha_zero,
        allow_pickle=allow_pickle,
        allow_partial=allow_partial,
        strip_metadata=strip_metadata,
        overwrite=overwrite,
        factor_rank=parsed_rank(factor_rank),
        reader=for_reader,
    )
    _show(found, input, for_reader, as_json=common.json)
    return 0


def _show(found: "ConvertedFile", given: Path, for_reader: Reader | None, *, as_json: bool) -> None:
    from prolora_jax.adapters.formats.vllm import started_with

    kept = [m.made_from.kept for m in found.adapter.modules if m.made_from is not None]
    before, count = found.adapter.format, len(found.adapter.modules)
    if as_json:
        facts = {
            "input": str(given),
            "from": before,
            "output": str(found.output),
            "to": found.format,
            "names": found.names,
            "modules": count,
            "factored": {"modules": len(kept), "least_kept": min(kept, default=None)},
        }
        write_json(facts)
        return
    out().print(
        f"{found.output}: {count} modules, {before} -> {found.format}, names of {found.names}",
        markup=False,
    )
    if for_reader == "vllm":
        out().print(started_with(found.adapter.ranks))
    if kept:
        out().print(
            f"LoRA factors were made for {len(kept)} modules; they hold {min(kept):.4%} of the "
            f"update's squared norm at least, {sum(kept) / len(kept):.4%} on average"
        )
