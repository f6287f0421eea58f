"""What one file of a table says of the others: counts of a plan, and a refusal by name."""

from pathlib import Path

from prolora_jax.catalog.outlook import Moving, Outlook, SharedRefusal, Tally
from prolora_jax.plans.plan import Skip, SkippedModule


def test_modules_and_reasons_are_counted_once():
    moving = [
        Moving("a", (0.9, 0.8), ("weak-match",)),
        Moving("a", (0.7, 1.0), ()),  # one source, two targets
        Moving("b", None, ("identical",)),
        Moving("c", None, ()),  # `copy` measures nothing
    ]
    skipped = [
        SkippedModule(Skip.BELOW_THRESHOLD, "a", "x"),  # it moves elsewhere
        SkippedModule(Skip.BELOW_THRESHOLD, "d", "y"),
        SkippedModule(Skip.NO_SOURCE_BLOCK, None, "z"),
    ]
    tally = Tally.of(moving, skipped, ("ambiguous-base",))
    assert (tally.verdict, tally.modules, tally.moved) == ("partial", 4, 3)
    assert tally.skipped == {"below-threshold": 1}
    assert (tally.phi_min, tally.phi_mean) == (0.7, (0.8 + 0.7 + 1.0) / 3)
    assert tally.flags == (
        "ambiguous-base",
        "identical: 1",
        "no-source-block: 1",
        "weak-match: 1",
    )


def test_nothing_that_moves_is_a_refusal():
    assert Tally.of([], [], ()).verdict == "refused"
    assert Tally.of([Moving("a", (1.0, 1.0), ())], [], ()).verdict == "ok"


def test_a_refusal_names_the_file_that_it_is_about():
    seen = Path("/folder/first.safetensors")
    refusal = SharedRefusal.of("refused", "some-code", f"{seen}: found 3 tensors.", seen)
    record = Outlook(refusal=refusal).record("b.safetensors", Path("/other/b.safetensors"), 7)
    assert record.message == "/other/b.safetensors: found 3 tensors."
    assert (record.verdict, record.state, record.reason) == ("refused", "refused", "some-code")
    assert (record.output, record.size_in) == (None, 7)


def test_a_message_without_a_file_stays_as_it_is():
    refusal = SharedRefusal.of("failed", "code", "--assume-base x: expected sdxl", Path("/a"))
    record = Outlook(refusal=refusal).record("b", Path("/b"), 0)
    assert record.message == "--assume-base x: expected sdxl"
