"""A refined file: what a student has learned is looked at, all else is recomputed as for a copy.

What samples of two nets have taught follows from no weights alone. So the learned factors are
exchanged for those of the copy that the student started from, which the rest of the wing recomputes
with names, matching, skips, header and all; of the learned ones shapes, ranks, dtypes, norms and
finiteness are checked here, and every check says that they were not recomputed.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.plans.plan import Action, Skip
from prolora_jax.plans.report import REFINED, MigrationReport, ModuleReport
from prolora_jax.verification.result import VerifyReport

_TAUGHT = ("unet.", "lm.")
_CHOSEN = {
    "refine": "taught: R = {r:.3f} is below the limit",
    "reteach": "taught anew: R = {r:.3f} is not below the limit",
    "copy": "copied: R = {r:.3f} is not below the limit",
}
"""How the sentence about a choice begins, by way; of an adapter that nothing was taught:"""
_UNTAUGHT = "copied, as nothing was taught: "
_NORM = 1e-5
"""Largest share by which a norm may differ: the report has it of the very numbers in the file."""


_LOSSES = ("source_on_target", "target_on_source", "target_own", "source_own")
"""Of what each of two base models says of both's samples: L_s(T), L_t(S), L_t(T), L_s(S)."""
_R = 1e-9
"""How far R may be from what its losses give, as it stands in the report with all its digits."""


class Unlearned(NamedTuple):
    """A refined file as the copy it was before.

    Attributes:
        output: with the copy's factors, and without modules learned from nothing.
        report: of the copy.
        problems: of the learned factors.
        learned: paths of modules that were exchanged.
    """

    output: Adapter
    report: MigrationReport
    problems: list[str]
    learned: frozenset[str]


def unlearned(
    output: Adapter, original: Adapter | None, told: MigrationReport, target: BaseModelSpec
) -> Unlearned:
    """Take a file and its report back to before the student.

    Args:
        output: as it was read.
        original: the input; None where it is not there: then the file's own factors stay.
        told: its report.
        target: the base model that the file is for.
    """
    record, apart = told.refined, _choice(told) + _disagreement(told)
    flagged = {m.path: m for m in told.modules if REFINED in m.flags}
    if record is None or record.way == "copy":
        said = "has no refinement" if record is None else "kept the copy"
        problems = [f"{path}: is flagged {REFINED}, but the report {said}" for path in flagged]
        return Unlearned(output, told, problems + apart, frozenset())
    problems = apart
    for module in told.modules:
        if module.path.startswith(_TAUGHT) != (module.path in flagged):
            state = "is" if module.path in flagged else "is not"
            learned = "students learn the UNet or the language model"
            problems.append(f"{module.path}: {state} flagged {REFINED}; {learned}")
        elif module.path in flagged and module.action is not Action.COPY:
            problems.append(f"{module.path}: was projected; students start from copies")
    after = {module.path: module for module in output.modules}
    ranks = {path: (m.rank_out, m.norm_out) for path, m in flagged.items()}
    nothing = {one.path: (one.rank, one.norm) for one in record.from_zero}
    unlike = {s.source_path for s in told.skipped if s.reason is Skip.SHAPE_MISMATCH}
    for path in sorted(nothing.keys() - unlike):
        problems.append(f"{path}: was learned from nothing, but the report does not skip it")
    for path, (rank, norm) in sorted((ranks | nothing).items()):
        problems += _seen(path, after.get(path), target, rank, norm)
    before = {} if original is None else {module.path: module for module in original.modules}
    for path, said in flagged.items():
        if path in after and said.source_path in before:
            after[path] = _copied(before[said.source_path], after[path])
    kept = tuple(after[m.path] for m in output.modules if m.path not in nothing)
    modules = tuple(_as_copy(m, before) if m.path in flagged else m for m in told.modules)
    report = replace(told, modules=modules)
    return Unlearned(replace(output, modules=kept), report, problems, frozenset(ranks))


def with_learned(checked: VerifyReport, found: Unlearned, told: MigrationReport) -> VerifyReport:
    """What came of the copy, as what came of the refined file.

    Args:
        checked: of the copy.
        found: what was exchanged for it.
        told: report of the file.
    """
    record = told.refined
    if record is None or record.way == "copy":
        return checked
    modules = tuple(
        replace(one, verdict="not-recomputed", error=None, allowed=None)
        if one.path in found.learned and one.verdict in ("verified", "not-compared")
        else one
        for one in checked.modules
    )
    number = len(found.learned) + len(record.from_zero)
    open_ = (
        f"{number} modules: their factors were learned from samples of both base models, which no "
        "weights say; only names, shapes, ranks, dtypes and norms were checked",
        "what the report says of samples, losses and words (`refined`); R is what its losses give",
    )
    return replace(
        checked,
        ok=False,
        learned=number,
        modules=modules,
        counts=dict(Counter(one.verdict for one in modules)),
        not_checked=(*open_, *checked.not_checked),
    )


def _choice(told: MigrationReport) -> list[str]:
    """What is wrong with what a report says that `--method auto` chose."""
    said, record = told.decided or "", told.refined
    if told.method is None and told.decided is None:
        return []
    wanted = _UNTAUGHT if record is None else _CHOSEN[record.way].format(r=record.disagreement)
    if told.method is None or not said.startswith(wanted):
        return [f"the report says that `auto` chose {said[:60]!r}; by its record: {wanted!r} ..."]
    if record is not None and record.words:
        shown = f"{len(record.triggers)} of {len(record.words)} prompts"
        if record.way != "refine" and shown not in said:
            return [f"the report says that `auto` chose {said!r}; by its record: {shown!r}"]
    return []


def _disagreement(told: MigrationReport) -> list[str]:
    """What is wrong with R, given the losses of which it is made: docs/refine.md 4."""
    if told.refined is None:
        return []
    said, losses = told.refined.disagreement, told.refined.losses
    known = [losses.get(name, math.nan) for name in _LOSSES]
    if not all(math.isfinite(loss) and loss > 0 for loss in known):
        return [f"the report has the losses {losses}; expected four positive ones, of which R is"]
    on_other, own = known[0] + known[1], known[2] + known[3]
    r = on_other / own - 1
    if not (math.isfinite(r) and abs(r - said) <= _R * max(1.0, abs(r))):
        return [f"the report says R = {said:.6g}; its losses give {r:.6g}"]
    return []


def _seen(
    path: str, module: LoraModule | None, target: BaseModelSpec, rank: int, norm: float
) -> list[str]:
    """What of a learned module is wrong, as far as that can be seen."""
    if module is None or path not in target.modules:
        return [f"{path}: was learned, but is not in the {'file' if module is None else 'target'}"]
    shape = target.modules[path].shape
    wanted = (rank, *shape[1:]), (shape[0], rank, *(1,) * (len(shape) - 2))
    found = module.down.shape, module.up.shape
    if found != wanted:
        return [f"{path}: has factors of shape {found}; expected {wanted}"]
    if not all(np.isfinite(side.astype(np.float32)).all() for side in (module.down, module.up)):
        return [f"{path}: has NaN or infinite numbers"]
    if abs(module.norm - norm) > _NORM * max(norm, module.norm):
        return [f"{path}: has an update of norm {module.norm:.6g}; the report says {norm:.6g}"]
    return []


def _copied(before: LoraModule, learned: LoraModule) -> LoraModule:
    """The input's factors, spelled as the file's are."""
    ones = (1,) * (learned.up.ndim - 2)
    up = before.up.astype(np.float32) * np.float32(before.scale)
    return replace(
        learned,
        down=before.down.reshape(before.down.shape[0], *learned.down.shape[1:]).astype(
            learned.down.dtype
        ),
        up=up.reshape(*before.up.shape[:2], *ones).astype(learned.up.dtype),
        alpha=None if learned.alpha is None else float(before.down.shape[0]),
    )


def _as_copy(told: ModuleReport, before: Mapping[str, LoraModule]) -> ModuleReport:
    """The record of a learned module, as it was of the copy."""
    flags = tuple(flag for flag in told.flags if flag != REFINED)
    if told.source_path not in before:
        return replace(told, flags=flags)
    return replace(told, flags=flags, rank_out=told.rank_in, norm_out=told.norm_in)
