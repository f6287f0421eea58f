"""Models that mergekit has put together of a model's layers: each gets what its layer was given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from language_models import LanguagePair, make_language_pair, merged

from prolora_jax.architectures.llm.stacked import layers_of_recipe
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

COPY = MigrationOptions(method="copy")


def recipe(*spans: tuple[int, int]) -> dict[str, Any]:
    """As mergekit has it: SOLAR's is `(0, 24), (8, 32)`."""
    names = ("some/model", "another/of-its-kind")
    slices = [
        {"sources": [{"model": names[i % 2], "layer_range": [*span]}]}
        for i, span in enumerate(spans)
    ]
    return {"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"}


def updates(net: Any, adapter: Path) -> dict[str, np.ndarray]:
    before, after = net.state_dict(), merged(net, adapter).state_dict()
    found = {key: (after[key] - before[key]).numpy() for key in before}
    return {key: delta for key, delta in found.items() if delta.any()}


def require_each_from_its_layer(pair: LanguagePair, out: Path, count: int) -> None:
    given, found = updates(pair.source_net, pair.adapter), updates(pair.target_net, out)
    assert len(found) == count
    for name, delta in found.items():
        np.testing.assert_allclose(delta, given[pair.source_name(name)], atol=2e-7)


@pytest.mark.parametrize(
    ("kept", "spans"),
    [
        ((0, 1, 2, 1, 2, 3), ((0, 3), (1, 4))),  # deeper: two layers are there twice
        ((0, 1, 1, 2), ((0, 2), (1, 3))),  # as deep as the source: its names fit, and mean others
    ],
)
def test_a_layer_of_the_source_feeds_all_that_were_made_of_it(
    kept: tuple[int, ...], spans: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    pair = make_language_pair(tmp_path, "llama", kept=kept, layers=("q_proj", "down_proj"))
    (pair.target / "mergekit_config.yml").write_text(yaml.safe_dump(recipe(*spans)))
    out = tmp_path / "out"
    migrate_file(pair.adapter, pair.source, pair.target, out, COPY)
    require_each_from_its_layer(pair, out, 2 * len(kept))
    assert verify_file(out).ok


@pytest.mark.parametrize("said", [recipe((1, 4)), "{"])
def test_a_recipe_that_the_weights_contradict_is_not_believed(said: object, tmp_path: Path) -> None:
    pair = make_language_pair(tmp_path, "llama", depth=4, kept=(0, 2, 3), layers=("q_proj",))
    text = said if isinstance(said, str) else yaml.safe_dump(said)
    (pair.target / "mergekit_config.yml").write_text(text)
    migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", COPY)
    require_each_from_its_layer(pair, tmp_path / "out", 3)


def test_recipes() -> None:
    assert layers_of_recipe(recipe((0, 2), (1, 3))) == (0, 1, 1, 2)
    mixed = {"sources": [{"model": name, "layer_range": [0, 4]} for name in "ab"]}
    for none in (
        *({}, [], {"slices": []}, {"slices": [mixed]}, {"slices": [3]}, {"models": []}),
        *(recipe((2, 2)), recipe((-1, 2)), recipe((0, 10**9))),
    ):
        assert layers_of_recipe(none) is None
