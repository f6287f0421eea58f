"""Options that another value would give the very same file for: no file tells which it was."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.plans.companions import Fate
from prolora_jax.plans.nearness import CLOSE_WEIGHTS
from prolora_jax.plans.plan import UNVERIFIED_TEXT_ENCODER, Action, MigrationPlan, Skip
from prolora_jax.plans.report import MigrationReport
from prolora_jax.plans.rules import OVERRIDES
from prolora_jax.plans.rules import followed as rules_place


def open_options(
    told: MigrationReport,
    plan: MigrationPlan,
    before: Adapter,
    own_ranks: Iterable[tuple[int, int]],
    equal: bool,
    whole: bool,
) -> dict[str, str]:
    """Options with other values that change nothing, and which these are.

    Args:
        told: the report, whose numbers hold.
        plan: made anew.
        before: the input.
        own_ranks: what the rank rule says for each weight alone, by pair.
        equal: whether any two weights are equal.
        whole: whether every span fills a side of its weight, or is empty: then arms coincide.
    """
    options, found = told.options, {}
    measured = [
        (s.similarity, options.options_for(s.path or ""))
        for s in (*plan.steps, *plan.skipped)
        if s.similarity is not None
    ]

    def decides(**changed: str) -> bool:
        return any(
            s.passes(own) != s.passes(replace(own, **changed))  # pyright: ignore[reportArgumentType]
            for s, own in measured
        )

    followed = {m.path: options.options_for(m.path) for m in told.modules}
    projected = [m for m in told.modules if m.action is Action.PROJECT]
    copy = all(own.method == "copy" for own in options.variants)
    below = any(s.reason is Skip.BELOW_THRESHOLD for s in plan.skipped)
    below = below or any("below-threshold" in step.flags for step in plan.steps)
    if not projected:
        found["method"] = "nothing is projected"
    elif whole:
        found["method"] = "arms that do the same where a span is everything or nothing"
    found["basis_rank"] = "no rank is used" if copy else "rules that retain the same ranks"
    if copy or all(source == target for source, target in own_ranks):
        found["pair_rank"] = "no two ranks differ"
    found["min_similarity"] = "no gate" if copy else "the same side of the gate"
    near = any(CLOSE_WEIGHTS in step.flags for step in plan.steps)
    if not near and not decides(gate="phi" if options.gate == "corrected" else "corrected"):
        found["gate"] = "no module hangs on it"
    if not decides(gate_sides="left" if options.gate_sides == "both" else "both"):
        found["gate_sides"] = "no module hangs on it"
    if not below:
        found["below"] = "no module is below the gate"
    if not equal:
        found["identical"] = "no weights are equal"
    found["match"] = "modes that match the same modules"
    if all(a.margin is None for a in plan.alignments):
        found["match_score"] = "no score was asked for"
    found["assume_base"] = "what was said, not what is"
    still = any(followed[m.path].method == "rotation" for m in projected)
    found["rotation_min_cos"] = "no cosine lies between" if still else "not this method"
    found["include"] = found["exclude"] = "patterns that take the same modules"
    if all(m.kept >= 1.0 - 1e-6 for m in told.modules):
        found["rank"] = "ranks that cut nothing"
    if len(before.ranks) == 1 or len({m.rank_out for m in told.modules}) == 1:
        found["uniform_rank"] = "there is one rank in any case"
    lengths = ((m.norm_out, abs(followed[m.path].scale) * m.norm_in) for m in told.modules)
    if all(abs(a - b) <= 1e-4 * b for a, b in lengths):
        found["rescale"] = "no norm has changed"
    if all(own.scale == 0.0 for own in options.variants):
        found |= dict.fromkeys(("method", "rank", "rescale"), "the scale is 0")
    found["dtype"] = "same, and the same by its name"
    beside = (c.fate for c in told.companions if c.part in {"layer", "saved", "rows"})
    if all(fate in {Fate.CARRIED, Fate.EXCLUDED} for fate in beside):
        found["allow_partial"] = "no whole layer stays behind"
    if all(module.made_from is None for module in before.modules):
        found["factor_rank"] = "the input is plain LoRA"
    origins = {module.made_from.algorithm for module in before.modules if module.made_from}
    if "dora" not in origins:
        found["dora"] = "the input has no DoRA"
    if options.rules:
        found["rules"] = "patterns that take the same modules, and values that change nothing"
        places = {rules_place(options.rules, m.path) for m in told.modules}
        said = [{} if p is None else options.rules[p].overrides for p in places]
        always = [name for name in OVERRIDES if all(name in one for one in said)]
        found |= dict.fromkeys(always, "every module follows a rule that has its own")
    found["alpha_zero"] = "an alpha of 0 that the input may not have"
    return found


def open_ends(
    told: MigrationReport, tied: int, in_folder: bool, options: Mapping[str, str]
) -> list[str]:
    """What no weight, name or number says anything about.

    Args:
        told: the report.
        tied: modules that may come from any of several equal blocks.
        in_folder: whether the report is a folder's.
        options: of `open_options`.
    """
    found = []
    if any(UNVERIFIED_TEXT_ENCODER in module.flags for module in told.modules):
        found.append("that both text encoders are equal: their weights are not here")
    if tied:
        found.append(f"which of several equal blocks {tied} modules come from")
    if in_folder:
        found.append(
            "pair.report.json: modules that this adapter does not train, its sentence about the "
            "two base models, their names and places"
        )
    said = ", ".join(f"{name} ({why})" for name, why in options.items())
    return [
        *found,
        f"options whose other values can give this very file: {said}",
        "which version of prolora made it, and where its input and both base models were",
    ]
