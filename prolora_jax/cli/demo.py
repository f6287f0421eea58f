"""`prolora demo`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prolora_jax.cli.console import Common, Reporter, out, write_json

COMMON = Common()


def demo(
    *,
    out_path: Annotated[Path, Parameter(name="--out")] = Path("prolora-demo"),
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """The whole job on two small trained nets: a style moved by every arm, judged, drawn.

    The nets ship with the package: one draws digits, the other is what SSD-1B is to SDXL, the same
    net with blocks removed and distilled. A style trained on the first is moved to the second with
    every arm; each output is verified, measured on held-out digits and shown beside the others.
    The arm refine learns from what both nets draw. No network, no GPU.

    Args:
        out_path: folder for everything the demo writes; what it wrote before is replaced.
    """
    from prolora_jax.cli import demo_tables, tables
    from prolora_jax.evaluation.demo_run import HEAT_MAP, run_demo

    store, reporter = None if common.store is None else common.basis_store(), Reporter(common.quiet)
    with reporter.shown():
        found = run_demo(out_path, store, reporter)
    if common.json:
        write_json(found.summary)
        return 0
    demo_tables.show_demo(out(), found.summary)
    tables.show_alignments(out(), found.alignments)
    out().print(
        f"{found.summary['sentence']}\n"
        "The nets were trained on handwritten digits (E. Alpaydin and C. Kaynak, UCI, CC BY 4.0); "
        "the style turns paper into ink.\n"
        f"Wrote {out_path}/: pictures.png (look at it first), {HEAT_MAP}, adapters, reports"
    )
    return 0
