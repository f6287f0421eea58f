"""The gate, skip reasons and the round trip of plans."""

from dataclasses import replace

import numpy as np
import pytest

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.matching.matching import Alignment, Matching
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import (
    Action,
    Measure,
    MigrationPlan,
    ModuleSimilarity,
    Skip,
    build_plan,
    wanted_pairs,
)

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
V = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
CONV = "unet.conv_in"
DEFAULTS = MigrationOptions()


def base(name: str, paths: tuple[str, ...]) -> BaseModelSpec:
    return BaseModelSpec(name, {path: ModuleSpec(path, (6, 5)) for path in paths})


def adapter(*paths: str, zero: bool = False) -> Adapter:
    up = np.zeros((6, 2), np.float32) if zero else np.ones((6, 2), np.float32)
    down = np.ones((2, 5), np.float32)
    return Adapter(tuple(LoraModule(path, down, up) for path in paths), "diffusers")


def similarity(left: float, right: float, hat: float | None = 0.9) -> Measure:
    return Measure(similarity=ModuleSimilarity(left, right, hat, hat, 3, 3))


def plan(measure: Measure, options: MigrationOptions = DEFAULTS) -> MigrationPlan:
    spec = base("s", (Q,))
    return build_plan(adapter(Q), spec, spec, Matching({Q: Q}), {Q: measure}, options)


@pytest.mark.parametrize(
    ("left", "right", "options", "moves"),
    [
        (0.8, 0.8, {}, True),
        (0.79, 0.9, {}, False),
        (0.9, 0.79, {}, False),
        (0.9, 0.1, {"gate_sides": "left"}, True),
        (0.1, 0.9, {"gate_sides": "left"}, False),
        (0.7, 0.7, {"min_similarity": 0.6}, True),
    ],
)
def test_gate(left: float, right: float, options: dict, moves: bool):
    result = plan(similarity(left, right), MigrationOptions(**options))
    assert [s.action for s in result.steps] == ([Action.PROJECT] if moves else [])
    assert [s.reason for s in result.skipped] == ([] if moves else [Skip.BELOW_THRESHOLD])


def test_gate_on_the_corrected_similarity():
    options = MigrationOptions(gate="corrected")
    assert not plan(similarity(0.95, 0.95, hat=0.3), options).steps
    assert plan(similarity(0.5, 0.5, hat=0.85), options).steps
    # Both spans are everything: no information, so the module passes.
    assert plan(similarity(1.0, 1.0, hat=None), options).steps[0].flags == ("uninformative",)


def test_below_the_gate_can_be_copied():
    step = plan(similarity(0.1, 0.1), MigrationOptions(below="copy")).steps[0]
    assert step.action is Action.COPY
    assert "below-threshold" in step.flags


def test_passing_near_chance_is_flagged():
    assert plan(similarity(0.95, 0.95, hat=0.4)).steps[0].flags == ("weak-similarity",)
    assert plan(similarity(0.95, 0.95, hat=0.6)).steps[0].flags == ()


def test_copy_is_not_gated():
    assert plan(Measure(), MigrationOptions(method="copy")).steps[0].action is Action.COPY


def test_identical_weights_are_copied():
    step = plan(Measure(identical=True)).steps[0]
    assert (step.action, step.flags) == (Action.COPY, ("identical",))


def test_every_module_is_in_one_place_with_its_reason():
    source = base("s", (Q, V, CONV, "unet.gone"))
    target = base("t", (Q, V))
    target = replace(target, modules={**target.modules, CONV: ModuleSpec(CONV, (9, 9))})
    given = Adapter(
        (
            *adapter(Q, CONV, "unet.gone", "text_encoder.x").modules,
            *adapter(V, zero=True).modules,
        ),
        "diffusers",
    )
    matching = Matching({Q: Q, V: V})
    options = MigrationOptions()
    assert wanted_pairs(given, matching, options) == {Q: Q}
    result = build_plan(given, source, target, matching, {Q: similarity(0.9, 0.9)}, options)
    reasons = {s.source_path: s.reason for s in result.skipped}
    assert [s.path for s in result.steps] == [Q]
    assert reasons == {
        CONV: Skip.SHAPE_MISMATCH,
        "unet.gone": Skip.REMOVED_IN_TARGET,
        "text_encoder.x": Skip.TEXT_ENCODER,
        V: Skip.ZERO_DELTA,
    }


def test_include_and_exclude():
    spec = base("s", (Q, V))
    for options in (MigrationOptions(include=("*to_q",)), MigrationOptions(exclude=("*to_v",))):
        measures = {Q: similarity(0.9, 0.9)}
        result = build_plan(adapter(Q, V), spec, spec, Matching({Q: Q, V: V}), measures, options)
        assert [s.path for s in result.steps] == [Q]
        assert [s.reason for s in result.skipped] == [Skip.EXCLUDED]


def test_empty_blocks_of_a_deeper_target_are_listed():
    deeper = Q.replace("blocks.0.", "blocks.1.")
    source, target = base("s", (Q,)), base("t", (Q, deeper))
    alignment = Alignment("unet.mid_block.attentions.0", 1, 2, ((0, 0),), 0.5)
    result = build_plan(
        adapter(Q),
        source,
        target,
        Matching({Q: Q}, (alignment,)),
        {Q: similarity(1, 1)},
        MigrationOptions(),
    )
    assert [(s.path, s.reason) for s in result.skipped] == [(deeper, Skip.NO_SOURCE_BLOCK)]


def test_weak_alignment_is_flagged():
    alignment = Alignment("unet.mid_block.attentions.0", 2, 1, ((0, 0),), 0.01)
    spec = base("s", (Q,))
    result = build_plan(
        adapter(Q),
        spec,
        spec,
        Matching({Q: Q}, (alignment,)),
        {Q: similarity(1, 1)},
        MigrationOptions(),
    )
    assert result.steps[0].flags == ("weak-match",)


def test_json_round_trip():
    result = plan(similarity(0.9, 0.7), MigrationOptions(below="copy", include=("*",)))
    assert MigrationPlan.from_json(result.to_json()) == result
