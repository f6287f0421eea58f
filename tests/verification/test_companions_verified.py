"""Vectors beside the pairs: a changed, missing or made-up one is noticed."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from prolora_jax.adapters.adapter import Adapter, Companion, LoraModule
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.plans.companions import Fate, PlannedCompanion
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.rules import ModuleRule
from prolora_jax.verification.companions import companion_problems
from prolora_jax.verification.saved_layers import saved_layer_holds

PATH = "unet.conv_in"
VECTOR = np.linspace(1, 2, 4, dtype=np.float32)
ONE = LoraModule(PATH, np.ones((1, 2), np.float32), np.ones((2, 1), np.float32))
SHARE = float(np.sum(VECTOR.astype(float) ** 2) / (np.sum(VECTOR.astype(float) ** 2) + 4))
TOLD = PlannedCompanion("a.diff_b", "bias", PATH, PATH, Fate.CARRIED, SHARE)
LEFT = PlannedCompanion("a.diff_b", "bias", PATH, None, Fate.NO_LAYER, SHARE)


def adapter(key: str = "a.diff_b", array: np.ndarray = VECTOR, path: str = PATH) -> Adapter:
    return Adapter((ONE,), "kohya-ldm", companions=(Companion(key, path, "bias", array),))


NO_WEIGHTS = BaseModel(BaseModelSpec("none", {}), "none", {})
MODELS = (NO_WEIGHTS, NO_WEIGHTS)  # asked for rows of embeddings alone
BEFORE, NONE = adapter(), Adapter((ONE,), "kohya-ldm")
TAKEN, LOST = (TOLD,), (LEFT,)
CASES = [
    (TAKEN, TAKEN, BEFORE, adapter("b.diff_b"), []),
    (LOST, LOST, BEFORE, NONE, []),
    (TAKEN, TAKEN, BEFORE, NONE, ["carried by the report, and not in the file"]),
    (TAKEN, TAKEN, BEFORE, adapter(array=VECTOR * 1.001), ["but not as in the input"]),
    (TAKEN, TAKEN, BEFORE, adapter(array=VECTOR[:3]), ["but not as in the input"]),
    (LOST, LOST, BEFORE, BEFORE, ["a.diff_b: the file has it, the report does not"]),
    ((), (), BEFORE, NONE, ["a.diff_b: of the input, and the report does not have it"]),
    (LOST, LOST, NONE, NONE, ["a.diff_b: of the report, and the input does not have it"]),
    ((replace(LEFT, share=0.5),), LOST, BEFORE, NONE, ["report has a share of 0.5, recomputed"]),
    # The report and the file agree, and both are not what becomes of the vector.
    (LOST, TAKEN, BEFORE, NONE, ["which is not what becomes of it", f"should go to {PATH}"]),
    ((replace(LEFT, fate=Fate.EXCLUDED),), LOST, BEFORE, NONE, ["report says excluded"]),
]


@pytest.mark.parametrize(("told", "planned", "before", "after", "problems"), CASES)
def test_every_vector_is_accounted_for(told, planned, before, after, problems):
    found = list(companion_problems(told, planned, before, after, MigrationOptions(), MODELS))
    assert len(found) == len(problems)
    assert all(problem in sentence for problem, sentence in zip(problems, found, strict=True))


def test_the_scale_of_all_updates_counts_for_vectors_too():
    other = adapter(array=VECTOR * 0.5)
    halved = MigrationOptions(scale=0.5)
    by_rule = MigrationOptions(rules=(ModuleRule(PATH, scale=0.5),))
    for options in (halved, by_rule):
        assert not list(companion_problems(TAKEN, TAKEN, BEFORE, other, options, MODELS))
        assert list(companion_problems(TAKEN, TAKEN, BEFORE, BEFORE, options, MODELS))
    elsewhere = MigrationOptions(rules=(ModuleRule("*.conv_out", scale=0.5),))
    assert list(companion_problems(TAKEN, TAKEN, BEFORE, other, elsewhere, MODELS))


@dataclass(frozen=True)
class OneLayer:
    """A base model of one layer, in memory."""

    spec: BaseModelSpec
    array: np.ndarray

    def matrix(self, path: str) -> np.ndarray:
        return self.weight(path)

    def weight(self, path: str) -> np.ndarray:
        assert path in self.spec.modules
        return self.array

    def fingerprint(self, path: str) -> str:
        return path


def test_a_saved_layer_of_small_half_numbers_is_rounded_by_a_fixed_step():
    path, generator = "lm.lm_head", np.random.default_rng(0)
    before, ours, saved = 2e-5 * generator.standard_normal((3, 32, 32))
    before, ours, own = before.astype(np.float32), ours.astype(np.float32), saved.astype(np.float16)
    spec = BaseModelSpec("one", {path: ModuleSpec(path, (32, 32))})
    models = OneLayer(spec, before), OneLayer(spec, ours)
    moved = (ours.astype(np.float64) + (own.astype(np.float64) - before)).astype(np.float16)
    given = Companion("a.weight", path, "saved", own)
    assert saved_layer_holds(replace(given, array=moved), given, 1.0, models)
    moved[3, 4] += np.float16(2**-23)  # two of float16's smallest steps
    assert not saved_layer_holds(replace(given, array=moved), given, 1.0, models)
