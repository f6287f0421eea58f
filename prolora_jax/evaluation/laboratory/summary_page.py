"""The short tables of docs/evidence.md: a line for each target, with the arms that matter."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from prolora_jax.evaluation.laboratory.lm.arms import STUDENT
from prolora_jax.evaluation.laboratory.lm.verdicts import LM_RELATIVES, counted, with_refine
from prolora_jax.evaluation.laboratory.refine_verdicts import COPY, REFINE, RETEACH
from prolora_jax.evaluation.laboratory.summary import Row

_BY_LAYER_NUMBER = "copy match=name"
_LM_ARMS = {
    "copy": "`copy`",
    _BY_LAYER_NUMBER: "by layer number",
    "prolora-full": "`prolora-full`",
    "prolora open": "`prolora` at the default rank",
    "half": "`half`",
    STUDENT: "`student`",
}
_LM_TARGETS = ("same", *LM_RELATIVES, "narrow", "stranger")


def refine_summary(rows: Sequence[Row]) -> str:
    """Mean share of the gap closed, by target in the order of R.

    Args:
        rows: results of `refine_sweep.yaml`.

    Returns:
        Markdown: R, `copy`, `refine`, `reteach` over concepts alone, and the teacher itself.
    """
    lines = ["| target | R | `copy` | `refine` | `reteach` (concept) | the teacher itself |"]
    lines.append("|---" * 6 + "|")
    far = {row["target"]: row["disagreement"] for row in rows}
    for target in sorted(far, key=lambda name: far[name]):
        here = [row for row in rows if row["target"] == target]
        concepts = [row for row in here if row["kind"] == "concept"]
        shown = (
            _mean(here, COPY),
            _mean(here, REFINE),
            _mean(concepts, RETEACH),
            _mean(here, "delta"),
        )
        lines.append(f"| {target} | {far[target]:.3f} | {' | '.join(shown)} |")
    return "\n".join(lines)


def lm_summary(results: Mapping[str, Sequence[Row]]) -> str:
    """Mean share of the gap closed, by models and target.

    Args:
        results: of language models, by what the models are called.

    Returns:
        Markdown: R where a student was taught, and the arms that the rules speak of.
    """
    lines = [f"| models | target | R | {' | '.join(_LM_ARMS.values())} |"]
    lines.append("|---" * (len(_LM_ARMS) + 3) + "|")
    for models, rows in results.items():
        known = with_refine(counted(rows))
        far = {row["target"]: row["disagreement"] for row in known if row["arm"] == STUDENT}
        for target in _LM_TARGETS:
            here = [row for row in known if row["target"] == target]
            if here:
                r = f"{far[target]:.3f}" if target in far else ""
                shown = " | ".join(_mean(here, arm) for arm in _LM_ARMS)
                lines.append(f"| {models} | {target} | {r} | {shown} |")
    return "\n".join(lines)


def _mean(rows: Sequence[Row], arm: str) -> str:
    found = [row["arrived"][0] for row in rows if row["arm"] == arm]
    return f"{fmean(found):.3f}" if found else ""
