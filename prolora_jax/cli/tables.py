"""Plans, reports and similarities as tables for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from prolora_jax.adapters.comparison import AdapterComparison
from prolora_jax.adapters.inspection import Inspection, LanguageModel, Network
from prolora_jax.architectures.stacks import place_of
from prolora_jax.cli.console import printable
from prolora_jax.matching.alignment import Alignment
from prolora_jax.plans.plan import Measure, MigrationPlan, ModuleSimilarity, SkippedModule
from prolora_jax.plans.report import MigrationReport

if TYPE_CHECKING:
    from prolora_jax.verification.result import VerifyReport

SHOWN = 12
"""Longest list of modules printed; the rest is in the JSON."""


def spread(values: list[float]) -> str:
    """Minimum, median and maximum of some numbers."""
    if not values:
        return "-"
    low, mid, high = np.min(values), np.median(values), np.max(values)
    return f"{low:.3f} .. {mid:.3f} .. {high:.3f}"


def show_plan(console: Console, plan: MigrationPlan) -> None:
    """Every step and every skipped module, then the totals."""
    table = Table(title=f"Plan: {plan.source} -> {plan.target}, {plan.options.method}")
    for name in ("target module", "from", "what", "phi left", "phi right", "k", "flags"):
        table.add_column(name, overflow="fold")
    for step in plan.steps:
        s = step.similarity
        phi = ("-", "-", "-") if s is None else (_phi(s.phi_left), _phi(s.phi_right), _k(s))
        came_from = "same name" if step.source_path == step.path else step.source_path
        table.add_row(step.path, came_from, step.action, *phi, ", ".join(step.flags))
    for skipped in plan.skipped:
        s = skipped.similarity
        phi = ("-", "-", "-") if s is None else (_phi(s.phi_left), _phi(s.phi_right), _k(s))
        table.add_row(skipped.path or "-", skipped.source_path or "-", "skip", *phi, skipped.reason)
    console.print(table)
    _show_packings(console, plan.packings)
    show_alignments(console, plan.alignments)
    _show_file_flags(console, plan.flags)
    actions = Counter(str(step.action) for step in plan.steps)
    actions.update(str(skipped.reason) for skipped in plan.skipped)
    console.print("Would do: " + ", ".join(f"{n} {what}" for what, n in sorted(actions.items())))


def _show_file_flags(console: Console, flags: Sequence[str]) -> None:
    """What is to be known of the file as a whole."""
    if flags:
        console.print("Flags of the file: " + "; ".join(flags), markup=False)


def show_similarity(console: Console, measures: Mapping[str, Measure]) -> None:
    """Spread of similarity by stage and role."""
    rows: dict[tuple[str, str], list[Measure]] = {}
    for path, measure in measures.items():
        rows.setdefault(_stage_and_layer(path), []).append(measure)
    table = Table(title="Similarity (min .. median .. max)")
    for name in ("stage", "layer", "modules", "phi left", "phi right", "corrected left", "right"):
        table.add_column(name)
    for (stage, layer), found in sorted(rows.items()):
        sides = [m.sides for m in found if m.sides is not None]
        known = [m.similarity for m in found if m.similarity is not None]
        table.add_row(
            stage,
            layer,
            str(len(found)),
            spread([left for left, _ in sides]),
            spread([right for _, right in sides]),
            spread([s.phi_hat_left for s in known if s.phi_hat_left is not None]),
            spread([s.phi_hat_right for s in known if s.phi_hat_right is not None]),
        )
    console.print(table)


def _stage_and_layer(path: str) -> tuple[str, str]:
    """(`down_blocks.1`, `attn2`) of a module path."""
    place = place_of(path)
    if place is None:
        _, stage, *rest = path.split(".")
        return stage, rest[0] if rest else ""
    outer, inner = place.steps[0], place.steps[-1].stack
    stage = outer.stack.name if outer.stack.deep else outer.under("").removeprefix(".")
    return stage, place.role.split(".")[0] if inner.deep else inner.name


def _show_packings(console: Console, packings: Mapping[str, Mapping[str, int]]) -> None:
    """How weights of the two bases are packed; nothing of those that are not."""
    for side, found in packings.items():
        if found:
            said = ", ".join(f"{packing} ({number})" for packing, number in found.items())
            console.print(f"Packed weights of the {side}: {said}", markup=False)


def show_alignments(console: Console, alignments: tuple[Alignment, ...]) -> None:
    """How stages, slots and blocks were paired, where the two bases differ."""
    for a in alignments:
        moved = any(i != j for i, j in a.pairs) or a.source_slot is not None
        if a.level == "module" or (a.source_blocks == a.target_blocks and not moved):
            continue
        pairs = ", ".join(f"{i}->{j}" for i, j in a.pairs)
        weak = "  weak-match: the runner-up is almost as good" if a.weak else ""
        margin = "" if a.margin is None else f"  margin {a.margin:.3f}"
        came_from = "" if a.source_slot is None else f" (from {a.source_slot})"
        console.print(
            f"{a.slot}{came_from}: {a.source_blocks} {a.level} -> {a.target_blocks}: "
            f"{pairs}{margin}{weak}"
        )
    each = [a for a in alignments if a.level == "module"]
    if each:
        console.print(
            f"{len(each)} modules matched one by one, {sum(a.weak for a in each)} weak-match"
        )


def show_report(
    console: Console, report: MigrationReport, out_path: Path, report_path: Path
) -> None:
    """Counts by outcome, spread of similarity, norms in and out."""
    table = Table(title=f"{out_path.name}: {report.options.method}")
    table.add_column("what became of the modules")
    table.add_column("modules", justify="right")
    table.add_column("phi left (min .. median .. max)")
    table.add_column("phi right")
    table.add_column("norm in", justify="right")
    table.add_column("norm out", justify="right")
    for action in ("project", "copy"):
        rows = [m for m in report.modules if m.action == action]
        if rows:
            table.add_row(
                {"project": "migrated", "copy": "copied"}[action],
                str(len(rows)),
                spread([m.phi_left for m in rows if m.phi_left is not None]),
                spread([m.phi_right for m in rows if m.phi_right is not None]),
                f"{_total([m.norm_in for m in rows]):.4g}",
                f"{_total([m.norm_out for m in rows]):.4g}",
            )
    for reason, skipped in _by_reason(report.skipped).items():
        known = [s.similarity for s in skipped if s.similarity is not None]
        table.add_row(
            f"skipped: {reason}",
            str(len(skipped)),
            spread([s.phi_left for s in known]),
            spread([s.phi_right for s in known]),
            "",
            "",
        )
    console.print(table)
    parties = {"source": report.source, "target": report.target}
    _show_packings(console, {side: party.packings for side, party in parties.items()})
    for note in sorted({note for party in parties.values() for note in party.notes}):
        console.print(note, markup=False)
    show_alignments(console, report.alignments)
    _show_file_flags(console, report.flags)
    flags = Counter(flag for m in report.modules for flag in m.flags)
    if flags:
        console.print("Flags: " + ", ".join(f"{n} {flag}" for flag, n in sorted(flags.items())))
    still = [m for m in report.modules if m.still_left or m.still_right]
    if still:
        left, right = (
            sum(getattr(m, f"still_{side}") for m in still) for side in ("left", "right")
        )
        console.print(
            f"Directions left still by the rotation: {left} left, {right} right, "
            f"in {len(still)} modules"
        )
    ranks = sorted({m.rank_out for m in report.modules})
    console.print(f"Rank out: {ranks[0]}" + (f" .. {ranks[-1]}" if len(ranks) > 1 else ""))
    console.print(f"Wrote {out_path}\n      {report_path}")


def _total(norms: list[float]) -> float:
    return float(np.sqrt(np.sum(np.square(norms))))


def _by_reason(skipped: tuple[SkippedModule, ...]) -> dict[str, list[SkippedModule]]:
    found: dict[str, list[SkippedModule]] = {}
    for module in skipped:
        found.setdefault(str(module.reason), []).append(module)
    return dict(sorted(found.items()))


def _phi(value: float) -> str:
    return f"{value:.3f}"


def _k(similarity: ModuleSimilarity) -> str:
    k_s, k_t = similarity.k_source, similarity.k_target
    return str(k_s) if k_s == k_t else f"{k_s}/{k_t}"


def show_inspection(console: Console, found: Inspection) -> None:
    """Facts about one file as a short list."""
    if found.verdict == "refused":
        console.print(f"{found.path}: refused ({found.reason})", markup=False)
        return
    if found.base_model is not None and found.verdict == "base-model":
        console.print(printable(f"{found.message}"), markup=False)
        if isinstance(found.base_model, Network):
            _show_network(console, found.base_model, _counts(found.components))
        else:
            _show_language_model(console, found.base_model)
        return
    console.print(f"{found.path}: {found.format}, {found.modules} modules", markup=False)
    scales = "" if found.scales is None else f"{found.scales[0]:.4g} .. {found.scales[1]:.4g}"
    facts = {
        "components": _counts(found.components),
        "algorithms": _counts(found.algorithms),
        "rank": _counts(found.ranks),
        "dtype": _counts(found.dtypes),
        "alpha": f"on {found.alpha} of {found.modules} modules, scale {scales}",
        "norm of the update": "" if found.algorithms or found.norm is None else f"{found.norm:.4g}",
        "zero updates": str(found.zero) if found.zero else "",
        "carried along": ", ".join(found.extras[:SHOWN]),
        "beside the pairs": ", ".join(f"{len(k)} {p}" for p, k in found.companions.items()),
        "flags": "; ".join(found.flags),
        **{f"header: {key}": value for key, value in found.metadata.items()},
    }
    _show_facts(console, facts)
    if isinstance(found.base_model, LanguageModel):
        _show_language_model(console, found.base_model)
    elif found.base is not None:
        ids = ", ".join(found.base.architectures)
        verdict = f"{found.base.verdict}: {ids}" if ids else found.base.verdict
        console.print(f"  base model: {verdict}", markup=False)
        for line in found.base.evidence:
            console.print(printable(f"    {line}"), markup=False)


def _show_language_model(console: Console, found: LanguageModel) -> None:
    facts = {
        "language model": found.family or "no config.json says which",
        "layers": str(found.layers),
        "width": "" if found.width is None else f"{found.width}, vocabulary {found.vocabulary}",
        "linear layers": str(found.modules),
        "packed weights": ", ".join(f"{name} ({n})" for name, n in found.packings.items()),
    }
    _show_facts(console, facts)


def _show_network(console: Console, found: Network, components: str) -> None:
    near = f"blocks of {found.family}" if found.family else "of no published model"
    stacks = {
        stack.name: f"{stack.parts}, width {', '.join(map(str, stack.widths))}"
        for stack in found.stacks
    }
    facts = {
        "architecture": found.architecture or near,
        "differences": "; ".join(found.differences),
        "to know": found.lookalikes or "",
        "naming": found.naming,
        **stacks,
        "components": components,
        "packed weights": ", ".join(f"{name} ({n})" for name, n in found.packings.items()),
    }
    _show_facts(console, facts)


def _show_facts(console: Console, facts: Mapping[str, str]) -> None:
    for name, value in facts.items():
        if value:
            console.print(printable(f"  {name}: {value}"), markup=False)


def _counts(counts: Mapping[int, int] | Mapping[str, int]) -> str:
    return ", ".join(f"{what} ({number} modules)" for what, number in counts.items())


def show_comparison(console: Console, found: AdapterComparison) -> None:
    """The modules that differ most, then the totals."""
    table = Table(title="Modules that differ most")
    for name in ("module", "norm A", "norm B", "cosine", "energy B / A", "|B - A| / |A|"):
        table.add_column(name, overflow="fold", justify="left" if name == "module" else "right")
    order = sorted(found.modules.items(), key=lambda item: -(item[1].difference or 0.0))
    for path, m in order[:SHOWN]:
        values = (m.norm_a, m.norm_b, m.cosine, m.energy, m.difference)
        table.add_row(path, *("-" if v is None else f"{v:.4g}" for v in values))
    console.print(table)
    cosines = [m.cosine for m in found.modules.values() if m.cosine is not None]
    console.print(f"Modules in both: {len(found.modules)}; cosine {spread(cosines)}")
    for name, paths in (
        ("only in A", found.only_a),
        ("only in B", found.only_b),
        ("in other shapes", found.other_shape),
        ("beside the pairs, unlike and not compared", found.beside),
    ):
        if paths:
            console.print(f"{name}: {len(paths)}, first {paths[0]}")
    if found.cosine is not None and found.energy is not None:
        console.print(f"Over all: cosine {found.cosine:.4f}, energy B / A {found.energy:.4f}")


def show_verification(console: Console, checked: "VerifyReport") -> None:
    """How many modules hold, and everything that does not."""
    counts = ", ".join(f"{number} {what}" for what, number in sorted(checked.counts.items()))
    error = f"largest error {checked.worst_error:.1e} of the input's norm"
    console.print(f"Modules: {counts}; {'no factors compared' if checked.absent else error}")
    bad = [m for m in checked.modules if m.verdict == "failed"]
    for module in bad[:SHOWN]:
        console.print(f"  {module.path}: {'; '.join(module.problems)}", markup=False)
    if len(bad) > SHOWN:
        console.print(f"  and {len(bad) - SHOWN} more (all with --json)")
    for problem in checked.problems[:SHOWN]:
        console.print(f"  {problem}", markup=False)
    if checked.not_checked:
        console.print("Not checked:")
    for line in checked.not_checked[-SHOWN:]:
        console.print(printable(f"  {line}"), markup=False, highlight=False)
    if len(checked.not_checked) > SHOWN:
        console.print(f"  and {len(checked.not_checked) - SHOWN} more (all with --json)")
    console.print(verdict_of(checked))


def verdict_of(checked: "VerifyReport") -> str:
    """What came of a check, in a sentence."""
    if checked.verdict == "not-compared":
        return (
            "Not verified: nothing wrong was found, but the factors were not compared. Not there: "
            f"{', '.join(checked.absent)}. Put it back; where it is one adapter and lies "
            "elsewhere, name it with --source-lora."
        )
    if checked.verdict == "learned":
        return (
            f"Not verified: nothing wrong was found, but {checked.learned} modules were learned "
            "from samples, which no weights say. The same `prolora refine` makes the same file."
        )
    open_ = checked.counts.get("undetermined", 0)
    verified = f"Verified, but for what {open_} modules leave open." if open_ else "Verified."
    drawn = checked.sample
    if drawn.seed is not None:
        verified = (
            f"{verified[:-1]}: {drawn.words}, drawn at random (--seed {drawn.seed} draws them "
            "again, --all takes all); of the others all but updates and similarities was checked."
        )
    return verified if checked.ok else "NOT verified."
