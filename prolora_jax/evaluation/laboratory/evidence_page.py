"""What of docs/evidence.md is made from results: tables, and what the rules make of them."""

from collections.abc import Mapping, Sequence

from prolora_jax.evaluation.laboratory import verdicts
from prolora_jax.evaluation.laboratory.summary import Row, table
from prolora_jax.evaluation.laboratory.verdicts import RELATIVES, on
from prolora_jax.evaluation.metrics.shares import Share

OPEN = " min_similarity=-1.0"
METHODS = ("subspace", "null-space", "prolora", "prolora-full", "rotation")
RULES = (
    "fraction=0.25",
    "fraction=0.5",
    "energy=0.8",
    "energy=0.9",
    "energy=0.95",
    "fraction=0.8",
    "numerical",
    "gap",
    "optimal",
)
"""From the smallest rank to the largest, as they come out in the laboratory's nets; the last two
find a rank in each weight's own spectrum."""
GATES = ("0.6", "0.7", "0.8", "0.9")
PRESENT_RULE, PRESENT_GATE = "energy=0.9", "phi 0.8"


def open_arm(method: str, rule: str = "") -> str:
    """Name of an arm without gate, with a rank rule of its own when one is given."""
    return f"{method}{f' basis_rank={rule}' if rule else ''}{OPEN}"


def swept(rows: Sequence[Row]) -> tuple[str, ...]:
    """The rank rules that results are there of, for every method."""
    known = {row["arm"] for row in rows}
    return tuple(r for r in RULES if all(open_arm(method, r) in known for method in METHODS))


def headline(rows: Sequence[Row]) -> str:
    """Tables of the headline sweep, and rules 1, 2 and 6."""
    own = [row for row in rows if row["control"] not in ("round-trip",)]
    moved = [row for row in own if row["control"] not in ("none", "trained")]
    back = [row for row in rows if row["control"] == "round-trip"]
    concepts = [row for row in own if row["kind"] == "concept"]
    tries = [verdicts.try_arm(rows, open_arm(method)) for method in METHODS]
    kinds = [row for row in moved if row["target"] in RELATIVES]
    parts = [
        "### What arrives\n\nShare of the gap closed, mean over adapters and seeds [95 % interval "
        "over them].",
        table(moved),
        "The same on relatives, by kind of adapter.",
        table(kinds, columns=("kind",)),
        "At each arm's best scale (chosen on other held-out pictures).",
        table(moved, measure="arrived_at_best"),
        "At `copy`'s norm.",
        table(moved, measure="arrived_at_norm"),
        "Frobenius norm of the update.",
        table(own, measure="norm", digits=2),
        "Best scale.",
        table(moved, measure="best_scale", digits=2),
        "### What the target keeps\n\nGrowth of the loss on the target's own pictures, concepts "
        "only (a style is meant to change them all).",
        table(concepts, measure="own_change"),
        "### There and back\n\nMoved to the target and back, judged on the source.",
        table(back),
        "### Rule 1: before `copy`?\n\nDifference to `copy` over all cells of relatives, and at "
        "its norm; the lowest mean difference on a relative.",
        _trials(tries),
        f"Recommendation: **`{_bare(verdicts.recommendation(tries))}`**.",
        "### Rule 6: the same story with every seed?",
        _seeds(rows),
        "### Rule 2: the default",
        _default(rows),
    ]
    return "\n\n".join(parts)


def _trials(tries: Sequence[verdicts.Trial]) -> str:
    lines = ["| arm | all relatives | at copy's norm | worst relative | passes |", "|---" * 5 + "|"]
    for trial in tries:
        worst = min(trial.by_target, key=lambda t: trial.by_target[t])
        lines.append(
            f"| {_bare(trial.arm)} | {_share(trial.overall)} | {_share(trial.at_norm)} | "
            f"{worst} {trial.by_target[worst]:+.3f} | {'yes' if trial.passes else 'no'} |"
        )
    return "\n".join(lines)


def _seeds(rows: Sequence[Row]) -> str:
    lines = ["| seed | recommendation | best arm beside copy |", "|---|---|---|"]
    for seed in sorted({row["seed"] for row in rows}):
        one = [row for row in rows if row["seed"] == seed]
        tries = [verdicts.try_arm(one, open_arm(method)) for method in METHODS]
        best = max(tries, key=lambda trial: trial.overall.value)
        lines.append(
            f"| {seed} | `{_bare(verdicts.recommendation(tries))}` | "
            f"{_bare(best.arm)} {_share(best.overall)} |"
        )
    return "\n".join(lines)


def _default(rows: Sequence[Row]) -> str:
    chosen, facts = verdicts.default_method(rows, ("prolora", "prolora-full", "rotation"))
    lines = [
        "| arm, gate at its default | difference to copy on relatives | change of the stranger's "
        "own loss |",
        "|---|---|---|",
    ]
    lines += [f"| {arm} | {gap:+.3f} | {harm:.4f} |" for arm, (gap, harm) in facts.items()]
    return "\n".join(lines) + f"\n\nDefault by the rule: **`{chosen}`**."


def settings(rows: Sequence[Row], method: str) -> str:
    """Tables of the sweep over options, and rules 3 to 5.

    Args:
        rows: results.
        method: the arm that rule 2 made the default.
    """
    parts = ["### Rule 3: rank of the subspaces\n\nMean share on relatives, without gate."]
    lines = ["| rule | " + " | ".join(METHODS) + " |", "|---" * (len(METHODS) + 1) + "|"]
    rules = swept(rows)
    means = {
        m: verdicts.best_setting(rows, {r: open_arm(m, r) for r in rules}, PRESENT_RULE)
        for m in METHODS
    }
    lines += [
        f"| {rule} | " + " | ".join(f"{means[m][1][rule]:.3f}" for m in METHODS) + " |"
        for rule in rules
    ]
    lines.append("| by the rule | " + " | ".join(means[m][0] for m in METHODS) + " |")
    parts.append("\n".join(lines))
    missing = [f"`{rule}`" for rule in RULES if rule not in rules]
    if missing:
        parts.append(f"Not swept yet, and so neither won nor lost: {', '.join(missing)}.")
    parts.append("One common k for a pair, or each base model its own (`--pair-rank`).")
    lines = ["| arm | own - max, on relatives |", "|---|---|"]
    for arm in ("prolora", "prolora-full"):
        change = verdicts.difference(
            rows, f"{arm}{OPEN} pair_rank=own", open_arm(arm, PRESENT_RULE), where=on(RELATIVES)
        )
        lines.append(f"| {arm} | {_share(change)} |")
    parts.append("\n".join(lines))
    parts += [_gates(rows, method), _others(rows)]
    return "\n\n".join(parts)


def _gates(rows: Sequence[Row], method: str) -> str:
    lines = [
        "### Rule 4: the gate",
        "",
        "| arm | gate | limit | cost on relatives | stranger's modules skipped |",
        "|---" * 5 + "|",
    ]
    chosen = []
    for arm in dict.fromkeys((method, "prolora", "prolora-full")):
        if arm not in ("prolora", "prolora-full"):
            continue
        named = {
            f"{gate} {limit}": f"{arm} gate={gate} min_similarity={limit}"
            for gate in ("phi", "corrected")
            for limit in GATES
        }
        found = verdicts.gates(rows, named, open_arm(arm, PRESENT_RULE))
        for name, gate in found.items():
            kind, limit = name.split()
            lines.append(f"| {arm} | {kind} | {limit} | {gate.cost:+.3f} | {gate.skipped:.0%} |")
        cheap, dear = (
            verdicts.strictest(found, PRESENT_GATE, cost) or "none"
            for cost in (verdicts.GATE_COST, verdicts.STRICT_GATE_COST)
        )
        chosen.append(
            f"`{arm}`: at a cost of at most {verdicts.GATE_COST}: **{cheap}**; "
            f"of at most {verdicts.STRICT_GATE_COST}: {dear}."
        )
    return "\n".join(lines) + "\n\n" + " ".join(chosen)


def _others(rows: Sequence[Row]) -> str:
    pairs: Mapping[str, tuple[str, str]] = {
        "`--rescale norm`, prolora (rule 5)": (
            f"prolora{OPEN} rescale=norm",
            open_arm("prolora", PRESENT_RULE),
        ),
        "`--rescale norm`, prolora-full (rule 5)": (
            f"prolora-full{OPEN} rescale=norm",
            open_arm("prolora-full", PRESENT_RULE),
        ),
        "`--rescale norm`, subspace": (
            f"subspace{OPEN} rescale=norm",
            open_arm("subspace", PRESENT_RULE),
        ),
        "`--gate-sides left`, prolora": (
            "prolora gate_sides=left",
            "prolora gate=phi min_similarity=0.8",
        ),
        "`--below copy`, prolora": ("prolora below=copy", "prolora gate=phi min_similarity=0.8"),
    }
    for matching in ("name", "block", "module"):
        pairs = {
            **pairs,
            f"`--match {matching}`, prolora-full": (
                f"prolora-full match={matching}{OPEN}",
                open_arm("prolora-full", PRESENT_RULE),
            ),
        }
    lines = [
        "### Rule 5, and the other options",
        "",
        "| option | change | by target |",
        "|---" * 3 + "|",
    ]
    for name, (arm, other) in pairs.items():
        overall = verdicts.difference(rows, arm, other, where=on(RELATIVES))
        by_target = ", ".join(
            f"{t} {verdicts.difference(rows, arm, other, where=on([t])).value:+.3f}"
            for t in (*RELATIVES, "stranger")
        )
        lines.append(f"| {name} | {_share(overall)} | {by_target} |")
    return "\n".join(lines)


def identity(rows: Sequence[Row]) -> str:
    """The table of the sweep whose target is the source."""
    return "\n\n".join(
        (
            "### Identity\n\nThe target is the source itself, every module projected all the same.",
            table(rows, columns=("adapter",)),
        )
    )


def beyond(rows: Sequence[Row]) -> str:
    """What is not in the paper, against `copy`, and rule 7.

    Args:
        rows: results of `beyond.yaml`.
    """
    arms = [a for a in dict.fromkeys(r["arm"] for r in rows) if a not in ("none", "trained")]
    arms.remove("copy")
    targets = list(dict.fromkeys(row["target"] for row in rows))
    distance = {row["target"]: row["phi_half"] for row in rows}
    parts = [
        "### Beyond the paper\n\nDifference to `copy`, share of the gap closed, mean over adapters "
        "and seeds [95 % interval over them]; the mean Phi of the pair at k = half stands above.",
        _against_copy(rows, arms, targets, distance, "arrived"),
        "The same at `copy`'s norm.",
        _against_copy(rows, arms, targets, distance, "arrived_at_norm"),
        "What `copy` itself reaches, and what the target's own loss grows by with concepts.",
        table([row for row in rows if row["arm"] == "copy"]),
        table([row for row in rows if row["kind"] == "concept"], measure="own_change"),
        "### Rule 7: `auto`",
        _auto(verdicts.try_auto(rows, arms)),
    ]
    return "\n\n".join(parts)


def _against_copy(
    rows: Sequence[Row],
    arms: Sequence[str],
    targets: Sequence[str],
    distance: Mapping[str, float],
    measure: str,
) -> str:
    heads = (f"{target} ({distance[target]:.3f})" for target in targets)
    lines = ["| way | " + " | ".join(heads) + " |", "|---" * (len(targets) + 1) + "|"]
    for arm in arms:
        gains = (_share(verdicts.difference(rows, arm, "copy", measure, on([t]))) for t in targets)
        lines.append(f"| {arm} | " + " | ".join(gains) + " |")
    return "\n".join(lines)


def _auto(trial: verdicts.AutoTrial) -> str:
    gains = "; ".join(f"{target} {_share(gain)}" for target, gain in trial.gains.items())
    verdict = "ships" if trial.ships else "does not ship"
    return (
        f"Chosen on `light` and `far`: **{trial.arm}** where the pair's mean Phi is below "
        f"{trial.limit:.3f}, else `copy`. Of the targets held out it is used on: "
        f"{', '.join(trial.used_on) or 'none'} ({gains or 'nothing to win'}, at `copy`'s norm). "
        f"`auto` **{verdict}**."
    )


def samples(rows: Sequence[Row]) -> str:
    """Tables of what generated pictures are like."""
    texts = {
        "effect_mmd": "Squared MMD to held-out pictures with the effect; less is better.",
        "own_mmd": "The same to the target's own pictures without the effect.",
        "fidelity": "Share of pictures that the classifier takes for their word.",
        "diversity": "Mean distance of features, over that of held-out pictures.",
    }
    parts = ["### Pictures"]
    for name, text in texts.items():
        parts += [text, table(rows, measure=f"samples.{name}")]
    return "\n\n".join(parts)


def _share(share: Share) -> str:
    return f"{share.value:+.3f} [{share.low:+.3f}, {share.high:+.3f}]"


def _bare(arm: str) -> str:
    return arm.replace(OPEN, "")
