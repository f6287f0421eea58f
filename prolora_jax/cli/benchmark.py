"""`prolora benchmark bases | migrate | catalog | host | first | memory`."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from prolora_jax.cli.console import Common, out

COMMON = Common()
SEVERAL = Parameter(negative="", show_default=False)
Quick = Annotated[bool, Parameter(negative="")]
OutPath = Annotated[Path | None, Parameter(name="--out")]
Shared = Annotated[Common, Parameter(name="*")]

benchmark = App(name="benchmark", help_format="plaintext")


@benchmark.command
def bases(
    *,
    rounds: int = 5,
    quick: Quick = False,
    out_path: OutPath = None,
    common: Shared = COMMON,
) -> int:
    """Subspaces of weights, ours against torch.linalg.svd, on one core; takes about ten minutes.

    Process CPU time, contestants in turn, medians. Needs PyTorch: install the extra `test`.

    Args:
        rounds: samples of each contestant and shape, 5 or more.
        quick: tiny shapes, a few seconds: shows that everything runs; its figures say nothing.
        out_path: JSON file with every sample, the environment and the peaks of this machine.
    """
    return _run("bases", rounds, quick, out_path, common)


@benchmark.command
def migrate(
    *,
    rounds: int = 5,
    quick: Quick = False,
    out_path: OutPath = None,
    common: Shared = COMMON,
) -> int:
    """Migration of adapters, ours against PyTorch, on one core; takes about seven minutes.

    Three baselines: the paper's formulas on dense updates, factors with cached overlaps, and many
    adapters at once. Process CPU time, contestants in turn, medians. Needs PyTorch: install the
    extra `test`.

    Args:
        rounds: samples of each contestant and shape, 5 or more.
        quick: tiny shapes, a few seconds: shows that everything runs; its figures say nothing.
        out_path: JSON file with every sample, the environment and the peaks of this machine.
    """
    return _run("migrate", rounds, quick, out_path, common)


@benchmark.command
def catalog(
    *,
    pair: Path | None = None,
    files: int = 64,
    rounds: int = 5,
    quick: Quick = False,
    out_path: OutPath = None,
    common: Shared = COMMON,
) -> int:
    """Files to files, on one core; at real size it takes about half an hour.

    Args:
        pair: folder that scripts/make_checkpoint_pair.py made; outputs go there, too, and away.
        files: of its catalog, how many.
        rounds: samples of each part, 5 or more.
        quick: tiny files, made on the spot: shows that everything runs; its figures say nothing.
        out_path: JSON file with every sample, the environment and the peaks of this machine.
    """
    more = {"files": files, "store": str(common.local_store().folder)}
    folder = None if pair is None else str(pair.resolve() if pair.exists() else pair)
    return _run("catalog", rounds, quick, out_path, common, folder=folder, **more)


@benchmark.command
def host(
    *,
    pair: Path | None = None,
    files: int = 16,
    full: Annotated[bool, Parameter(negative="--no-full")] = True,
    rounds: int = 5,
    quick: Quick = False,
    out_path: OutPath = None,
    common: Shared = COMMON,
) -> int:
    """CPU time of the host for each file of a catalog, beside reading and writing its bytes.

    On small nets, made on the spot, it takes a minute; at real size, with what is not stored yet,
    about half an hour.

    Args:
        pair: folder that scripts/make_checkpoint_pair.py made; small nets without it.
        files: of one table, how many are made.
        full: whether prolora-full is measured, too, which needs subspaces and operators.
        rounds: samples of each part, 5 or more.
        quick: few files on small nets: shows that everything runs; its figures say nothing.
        out_path: JSON file with every sample, the environment and the peaks of this machine.
    """
    folder = None if pair is None else str(pair.resolve() if pair.exists() else pair)
    more = {"files": files, "full": full, "store": str(common.local_store().folder)}
    return _run("host", rounds, quick, out_path, common, folder=folder, **more)


@benchmark.command
def first(
    *,
    pair: Path | None = None,
    way: Annotated[tuple[Literal["copy", "auto", "full"], ...], SEVERAL] = (),
    quick: Quick = False,
    out_path: OutPath = None,
    common: Shared = COMMON,
) -> int:
    """CPU time and memory of one file, with nothing stored and with everything, stage by stage.

    By --method copy, --gate auto and --method prolora-full, each time in a process of its own. On
    small nets, made on the spot, it takes a minute; at real size about half an hour, of which copy
    and auto take three minutes.

    Args:
        pair: folder that scripts/make_checkpoint_pair.py made; small nets without it.
        way: which is measured; may be said several times [default: all].
        quick: small nets: shows that everything runs; its figures say nothing.
        out_path: JSON file with every stage, the environment and the peaks of this machine.
    """
    folder = None if pair is None else str(pair.resolve() if pair.exists() else pair)
    more = {"folder": folder, "ways": list(way), "store": str(common.local_store().folder)}
    return _run("first", None, quick, out_path, common, **more)


@benchmark.command
def memory(
    *,
    pair: Path | None = None,
    way: Annotated[tuple[Literal["copy", "full"], ...], SEVERAL] = (),
    files: int = 64,
    most: int = 1024,
    quick: Quick = False,
    out_path: OutPath = None,
    common: Shared = COMMON,
) -> int:
    """Memory of a catalog that no file backs: with some files, and with many.

    By --method copy and --method prolora-full, each time in a process of its own. At real size it
    takes about half an hour, with what is not stored yet.

    Args:
        pair: folder that scripts/make_checkpoint_pair.py made; small nets without it.
        way: which is measured; may be said several times [default: all].
        files: some: so many are made.
        most: many: the same files again and again.
        quick: few files on small nets: shows that everything runs; its figures say nothing.
        out_path: JSON file with the results, the environment and the peaks of this machine.
    """
    folder = None if pair is None else str(pair.resolve() if pair.exists() else pair)
    more = {"folder": folder, "ways": list(way), "files": files, "most": most}
    more["store"] = str(common.local_store().folder)
    return _run("memory", None, quick, out_path, common, **more)


def _run(
    name: str, rounds: int | None, quick: bool, out_path: Path | None, common: Common, **more: Any
) -> int:
    import json

    from prolora_jax.benchmarks import isolated
    from prolora_jax.benchmarks.timing import ROUNDS
    from prolora_jax.cli.benchmark_tables import SHOW
    from prolora_jax.errors import Refusal, UsageError
    from prolora_jax.io import atomic
    from prolora_jax.io.outputs.protected import require_ending

    if rounds is not None:
        if rounds < ROUNDS:
            message = f"--rounds {rounds}: expected {ROUNDS} or more"
            raise UsageError(message, code=Refusal.BAD_OPTION)
        more["rounds"] = rounds
    require_ending(out_path, ".json")
    found = isolated.run(name, quick=quick, quiet=common.quiet, **more)
    text = json.dumps(found)
    if out_path is not None:
        atomic.write_text(out_path, text + "\n")
    if common.json:
        sys.stdout.write(text + "\n")
        return 0
    SHOW[name](out(), found)
    if out_path is not None:
        out().print(f"Wrote {out_path}", markup=False)
    return 0
