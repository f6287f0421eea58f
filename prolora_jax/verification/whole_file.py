"""What of a migrated file is wrong beyond single modules: its tensors, header and report."""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.plans.companions import plan_companions
from prolora_jax.plans.plan import MigrationPlan, Skip
from prolora_jax.plans.report import count
from prolora_jax.plans.token_flags import added_by_number, token_flags
from prolora_jax.verification.budget import budget_problems, spreads
from prolora_jax.verification.claim import Claim
from prolora_jax.verification.companions import companion_problems
from prolora_jax.verification.contents import extra_problems, module_problems, rank_problems
from prolora_jax.verification.header import provenance_problems, string_problems, used_weights
from prolora_jax.verification.made_from import (
    fingerprint_problems,
    flag_problems,
    packing_problems,
    part_problems,
)
from prolora_jax.verification.replan import Matched, alignment_problems
from prolora_jax.verification.totals import total_problems
from prolora_jax.verification.weights import Weights


class File(NamedTuple):
    """A file, and all that it came from.

    Attributes:
        output: the file.
        before: its input.
        source: base model of the input.
        target: base model of the file.
        claim: the report.
        matched: which source module feeds which target module.
        own: paths of modules that are written as they are.
    """

    output: Adapter
    before: Adapter
    source: Weights
    target: Weights
    claim: Claim
    matched: Matched
    own: Set[str]


def file_problems(
    file: File,
    plan: MigrationPlan,
    parts: Sequence[Adapter],
    norms: Mapping[str, float],
    sigmas: Mapping[str, np.ndarray],
) -> tuple[list[str], list[str]]:
    """What is wrong with a file as a whole, and what of it was not checked.

    Args:
        file: and what it came from.
        plan: what should have been done.
        parts: of a sum of several adapters: these, resolved, in their order.
        norms: of the updates as they should be, by path.
        sigmas: singular values of those that are cut, by path.
    """
    output, before, source, target, claim, matched, own = file
    told, models = claim.report, (source.spec, target.spec)
    counts, after = count(told.modules, told.skipped), {m.path: m for m in output.modules}
    # Of the weights that should have been used: the planned steps but those left out.
    gone = {s.path for s in told.skipped if s.reason is Skip.NOTHING_LEFT}
    steps = [step for step in plan.steps if step.path not in gone]
    prints = {
        "input": before.fingerprint,
        "source": used_weights(source, [step.source_path for step in steps]),
        "target": used_weights(target, [step.path for step in steps]),
    }
    uniform = told.options.uniform_rank or (len(before.ranks) == 1 and not spreads(told))
    problems = module_problems(output, told)
    problems += rank_problems(output, told, uniform, own)
    problems += extra_problems(output, before, told)
    found, not_checked = budget_problems(told, after, sigmas)
    problems += found
    problems += alignment_problems(told.alignments, matched)
    problems += [f"report has {name}, which is no field of it" for name in claim.unknown]
    problems += fingerprint_problems(told, prints)
    problems += packing_problems(told, source, target)
    if told.counts != counts:
        problems.append(f"report has counts {told.counts}; its modules are {counts}")
    problems += provenance_problems(output, told, prints, counts, target.spec)
    strings, open_ = string_problems(output, before, told, target.spec)
    moved = {(step.path, step.source_path) for step in plan.steps}
    tokens = matched.tokens
    beside = plan_companions(before, *models, matched.matching.pairs, moved, told.options, tokens)
    given = told.companions, beside, before, output, told.options, (source, target), tokens
    problems += companion_problems(*given)
    places = added_by_number(plan.steps, beside)
    unlike = tokens is None and any(
        source.fingerprint(path) != target.fingerprint(path) for path in places
    )
    of_tokens = token_flags(plan.steps, tokens, unlike=unlike)
    problems += strings + flag_problems(told, plan, before, models, beside, output, of_tokens)
    not_checked = [*not_checked, *open_]
    if told.parts and not parts:
        not_checked.append("fingerprints of the parts: they were not given one by one")
    else:
        problems += part_problems(told, parts)
    if claim.folder is not None:
        by = matched.matching.matched_by
        problems += total_problems(claim.folder, plan, before, output, norms, by)
    return problems, not_checked
