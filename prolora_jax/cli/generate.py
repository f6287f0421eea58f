"""`prolora generate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from prolora_jax.cli.console import Common, Reporter, out, write_json
from prolora_jax.cli.unused import refuse_idle, refuse_idle_migration
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.plans.options import MigrationOptions

if TYPE_CHECKING:
    from prolora_jax.evaluation.side_by_side import Request, SideBySide

COMMON = Common()
OPTIONS = MigrationOptions()
LIST = Parameter(negative="")
_MOST_SEEDS, _MOST_AT_ONCE = 2**32, 100_000
_WHOLE = 0.9999
"""Shares of an update from here on are not worth a word."""


def generate(
    *,
    base: Path,
    prompt: Annotated[tuple[str, ...], LIST],
    out_path: Annotated[Path, Parameter(name="--out")] = Path("pictures.png"),
    lora: Annotated[tuple[Path, ...], LIST] = (),
    scale: Annotated[tuple[float, ...], LIST] = (),
    source: Path | None = None,
    arms: str | None = None,
    seeds: str = "0",
    negative: str | None = None,
    weighting: Literal["off", "numbers", "all"] = "numbers",
    steps: int | None = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    lcm: Path | None = None,
    always: Path | None = None,
    sampler: Literal["auto", "ddim", "pndm", "euler", "euler-a", "dpm", "unipc", "lcm"] = "auto",
    spacing: Literal["leading", "linspace", "trailing"] | None = None,
    parts: Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    at_once: int = 1,
    vae_tile: Literal["auto", "off"] | int = "auto",
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    migrate: Annotated[
        MigrationOptions, Parameter(name="migrate", group="Migration, with --source")
    ] = OPTIONS,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Draw with adapters, in Flax: one labelled picture, ways of using them side by side.

    Columns are arms: `none`, the base alone; `lora`, the adapters as they are, for this base; with
    --source, `source`, the adapters on the base they are from, every method of a migration, after
    which the base draws, and `delta`, their effect on the source added at every step, without any
    file (both bases in memory; docs/refine.md). Rows are prompts and seeds; all columns start from
    the same noise.
    Needs the extra: pip install 'prolora_jax[pipelines]'.

    Args:
        base: base model that draws: a diffusers pipeline's folder, a hub id, or a UNet in any
            form, with --parts.
        prompt: what to draw; several: --prompt once for each.
        out_path: PNG to write.
        lora: adapter of any algorithm; several are used together: --lora once for each. Updates
            that have no factors get some (--migrate.factor-rank), whose share is shown.
        scale: strength of an adapter, in their order, once for each [default: 1 for all].
        source: base model the adapters were trained on: they are moved to BASE.
        arms: columns, with commas between them [default: none,lora; with --source: none, copy and
            --migrate.method].
        seeds: of the noise, such as 0,1,5 or 0-3.
        negative: what not to draw.
        weighting: which brackets in prompts weigh: numbers, such as (ink:1.2); all, (ink) and
            [ink], too; off, none.
        steps: of the sampler [default: 25; with LCM 4].
        guidance: how much the prompt counts [default: 7.5, for SDXL's family 5; with LCM 1].
        height: in pixels [default: what the base was trained on].
        width: in pixels.
        lcm: LCM adapter of BASE: used in every column, with LCM's sampler.
        always: another adapter of BASE that is used in every column.
        sampler: auto: the one that the pipeline names.
        spacing: where its steps are [default: as in the pipeline]; trailing for Lightning and
            Hyper adapters.
        parts: pipeline from which everything but the UNet is taken.
        dtype: what is computed in [default: float32 on a CPU, else bfloat16].
        at_once: pictures drawn together, on each device.
        vae_tile: decode pictures in tiles of so many pixels, height and width, for less memory and
            not quite the same picture; off: in one piece; auto: tiles of 512 above 1024 x 1024.
        overwrite: replace an existing output.
    """
    from prolora_jax.evaluation.side_by_side import Request, draw_to_file, usual_arms, usual_dtype

    moved_by = migrate.method if source else None
    given = arms.split(",") if arms else usual_arms(moved_by=moved_by, adapters=bool(lora))
    request = Request(
        base=base,
        arms=tuple(dict.fromkeys(given)),
        prompts=prompt,
        seeds=seeds_of(seeds),
        files=lora,
        scales=scale * len(lora) if len(scale) == 1 else scale or (1.0,) * len(lora),
        always=lcm or always,
        parts=parts,
        sampler="lcm" if lcm else sampler,
        spacing=spacing,
        dtype=usual_dtype() if dtype == "auto" else dtype,
        negative=negative,
        weighting=weighting,
        steps=steps,
        guidance=guidance,
        size=(height, width),
        at_once=at_once,
        vae_tile=vae_tile,
    )
    _require_alone(lcm, always, sampler)
    _require_used(request, source, migrate, given_scale=bool(scale))
    reporter = Reporter(common.quiet)
    kept = {"store": common.basis_store(), "workers": common.processes, "progress": reporter}
    with reporter.shown():
        drawn, said = draw_to_file(request, out_path, source, migrate, overwrite=overwrite, **kept)
    if common.json:
        write_json(said)
        return 0
    show_columns(out(), drawn)
    out().print(f"Wrote {out_path}: {len(request.rows)} rows, {len(drawn.columns)} columns")
    return 0


def _require_alone(lcm: Path | None, always: Path | None, sampler: str) -> None:
    if lcm and (always or sampler not in {"auto", "lcm"}):
        raise UsageError(
            "--lcm: found --always or another --sampler beside it; expected LCM's alone; for an "
            "adapter of another kind give --always and --sampler",
            code=Refusal.BAD_OPTION,
        )


def _require_used(
    request: "Request", source: Path | None, migrate: MigrationOptions, *, given_scale: bool
) -> None:
    """Refuse what would do nothing to any column."""
    here = {"none", "lora"}
    usual = 1.0 if request.sampler == "lcm" else 2.0  # of other samplers it is more than 1
    unheard = (usual if request.guidance is None else request.guidance) <= 1
    refuse_idle("--negative", request.negative is not None and unheard, "without guidance above 1")
    refuse_idle("--scale", given_scale and not request.files, "without --lora")
    refuse_idle("--source", source and not request.files, "without --lora")
    if source is None:
        refuse_idle_migration(migrate, "without --source")
    # Unknown arms are refused by name elsewhere.
    shown = f"beside --arms {','.join(request.arms)}"
    refuse_idle("--source", source and {*request.arms} <= here, shown)
    refuse_idle("--lora", request.files and request.arms == ("none",), shown)


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds from `0,1,5` or `0-3`.

    Args:
        text: numbers and ranges, with commas between them.

    Returns:
        The seeds, in order, each once.

    Raises:
        UsageError: the text is none of this.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        # Longer numbers than Python reads are none; of larger ones generators see a part alone.
        numbers = [int(one) for one in (first, last or first) if one.isdecimal() and len(one) < 11]
        fits = len(numbers) == 2 and numbers[0] <= numbers[1] < _MOST_SEEDS
        if not fits or (dash and not last) or numbers[1] - numbers[0] >= _MOST_AT_ONCE:
            raise UsageError(
                f"--seeds {text}: expected numbers and ranges, such as 0,1,5 or 0-3, below "
                f"{_MOST_SEEDS} and of at most {_MOST_AT_ONCE} seeds",
                code=Refusal.BAD_OPTION,
            )
        found |= dict.fromkeys(range(numbers[0], numbers[1] + 1))
    return tuple(found)


def show_columns(console: Console, drawn: "SideBySide") -> None:
    """A line for each column: what moved, and how far its pictures are from those without."""
    table = Table(title="Columns", title_justify="left")
    table.add_column("arm")
    table.add_column("change from none (rms, 0 to 1)", justify="right")
    table.add_column("modules")
    changes = drawn.changes()
    for arm in drawn.columns:
        counts = drawn.moved.get(arm, [])
        notes = [", ".join(f"{n} {what}" for what, n in one.items()) for one in counts]
        shares = drawn.kept.get(arm, [])
        notes += [f"{share:.1%} of the update" for share in shares if share < _WHOLE]
        table.add_row(arm, f"{changes[arm]:.3f}" if arm in changes else "", "; ".join(notes))
    console.print(table)
