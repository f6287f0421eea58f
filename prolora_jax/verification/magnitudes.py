"""Magnitudes of an output's modules of DoRA, against input and both weights, dense.

A module that stays DoRA keeps, row by row or channel by channel, the ratio of its magnitude to the
norm of weight and update together (docs/method.md 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule, StructuredModule
from prolora_jax.plans.report import DORA_KEPT, MigrationReport
from prolora_jax.verification.structured import bare_update, magnitude_of
from prolora_jax.verification.weights import Weights

SLACK = 1e-5
"""Relative: a magnitude is rounded to float32, and so are the weights it is computed from."""

Modules = Mapping[str, StructuredModule]


def dora_of(adapter: Adapter) -> Modules:
    """The modules of DoRA of an adapter, by path."""
    return {m.path: m for m in adapter.structured if m.algorithm == "dora"}


def without_magnitudes(output: Adapter) -> Adapter:
    """An output whose modules of DoRA are pairs: what they add before norms are set."""
    pairs = (
        LoraModule(m.path, m.parts["down"], m.parts["up"], m.alpha)
        for m in output.structured
        if m.algorithm == "dora" and {"down", "up"} <= m.parts.keys()
    )
    others = tuple(m for m in output.structured if m.algorithm != "dora")
    return replace(output, modules=(*output.modules, *pairs), structured=others)


def magnitude_problems(
    output: Adapter,
    given: Sequence[Adapter],
    source: Weights,
    target: Weights,
    told: MigrationReport,
) -> list[str]:
    """What is wrong with the magnitudes of an output.

    Args:
        output: as its file has it, resolved.
        given: the inputs as their files have them, resolved; none where they are not there: then
            it is only looked at which modules have one.
        source: base model of the inputs.
        target: base model of the output.
        told: the report.
    """
    written, problems = dora_of(output), []
    moved = {module.path: module.source_path for module in told.modules}
    if told.options.dora == "fold":
        return [f"{path}: is DoRA, and the report says --dora fold" for path in written]
    inputs = {path: m for one in given for path, m in dora_of(one).items()}
    wanted = {path for path, origin in moved.items() if origin in inputs}
    if given:
        problems += [f"{path}: lacks the magnitude of DoRA" for path in sorted(wanted - {*written})]
        problems += [f"{path}: is DoRA, its input is not" for path in sorted({*written} - wanted)]
        for path in sorted(wanted & written.keys()):
            origin = inputs[moved[path]]
            problems += _differing(written[path], origin, source, target)
    if getattr(told, "totals", None) is None:  # reports of a folder have no flags of modules
        flagged = {module.path for module in told.modules if DORA_KEPT in module.flags}
        problems += [
            f"{path}: the flag {DORA_KEPT} of the report and the file's tensors do not agree"
            for path in sorted(flagged ^ (written.keys() & moved.keys()))
        ]
    return problems


def _differing(
    written: StructuredModule, origin: StructuredModule, source: Weights, target: Weights
) -> list[str]:
    shape = source.spec.modules[origin.path].shape
    there = written.path in target.spec.modules
    before = source.matrix(origin.path).astype(np.float64) + bare_update(origin, shape)
    weight = target.matrix(written.path) if there else source.matrix(origin.path)
    after = weight.astype(np.float64) + bare_update(written, shape)
    old, new = magnitude_of(origin, shape), magnitude_of(written, shape)
    if old.over != new.over:
        return [f"{written.path}: its magnitude is of another axis than its input's"]
    sizes = old.norms(before, shape)
    gains = np.ones_like(sizes)
    gains[sizes > 0] = old.values[sizes > 0] / sizes[sizes > 0]
    expected = gains * new.norms(after, shape)
    off = np.abs(new.values - expected) > SLACK * np.abs(expected)
    if not off.any() and np.isfinite(new.values).all():
        return []
    return [f"{written.path}: {int(off.sum())} of {off.size} numbers of its magnitude are wrong"]
