"""`prolora verify`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prolora_jax.cli.console import Common, Reporter, out, write_json

COMMON = Common()


def verify(
    output: Path,
    *,
    source_lora: Path | None = None,
    source: Path | None = None,
    target: Path | None = None,
    allow_pickle: Annotated[bool, Parameter(negative="")] = False,
    sample: int = 20,
    everything: Annotated[bool, Parameter(name="--all", negative="")] = False,
    seed: str | None = None,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Recompute a migrated file on an independent dense float64 path and compare.

    Reads OUTPUT.report.json for what was done, and the weights of both base models. Modules are
    matched and planned anew, and every number of the report and of the header is compared. Exit
    code 1 when one differs by more than its dtype explains, or something should not be there. What
    nothing can be compared with is listed as not checked. Of a file with the modules of a large net
    some are drawn that are recomputed, and it is said how many; the others' names, shapes, ranks,
    norms and shares are checked. Where the adapter it was made from is
    gone, all else is checked, and the exit code is 1: nothing says that the update is right.

    Args:
        output: file that `prolora migrate` wrote; or the folder of a catalog: then every output
            is compared with what was written, and a sample is recomputed.
        source_lora: the adapter it was made from [default: from the report].
        source: source base model [default: from the report].
        target: target base model [default: from the report].
        allow_pickle: read the adapter it was made from if that is a pickle.
        sample: of a folder: how many outputs are recomputed.
        everything: recompute every module of a file; of a folder: every module of every output.
        seed: word of an earlier check, to recompute what that has drawn [default: a new one].
    """
    from prolora_jax.cli import catalog_tables, tables
    from prolora_jax.errors import Refusal
    from prolora_jax.io.outputs.manifest import NAME

    reporter = Reporter(common.quiet)
    if (output / NAME).is_file():
        from prolora_jax.catalog.verify import verify_catalog

        many = None if everything else sample
        how = {"allow_pickle": allow_pickle, "progress": reporter, "workers": common.processes}
        with reporter.shown():
            check = verify_catalog(output, many, seed, **how)
        if common.json:
            verdict, code = ("verified", None) if check.ok else ("failed", "not-verified")
            if check.learned and not check.problems:
                verdict, code = "learned", "learned"
            message = catalog_tables.verdict_of(check)
            said = {"verdict": verdict, "code": code, "message": message}
            write_json({"ok": check.ok, **said, **asdict(check)})
        else:
            catalog_tables.show_check(out(), check)
        return 0 if check.ok else 1
    from prolora_jax.verification.file import verify_file
    from prolora_jax.verification.recompute import Thoroughness

    how_much = Thoroughness(everything, seed, common.processes)
    how = {"allow_pickle": allow_pickle, "progress": reporter, "thoroughness": how_much}
    with reporter.shown():
        checked = verify_file(output, source_lora, source, target, **how)
    if common.json:
        code = {"failed": "not-verified", "not-compared": Refusal.MISSING_FILE}
        code["learned"] = "learned"
        said = {"verdict": checked.verdict, "code": code.get(checked.verdict)}
        write_json({**said, "message": tables.verdict_of(checked), **asdict(checked)})
    else:
        tables.show_verification(out(), checked)
    return 0 if checked.ok else 1
