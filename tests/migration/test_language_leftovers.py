"""What trainers leave in files: levels of wrappers, names of adapters, patterns, changed bases."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from language_models import (
    FAMILIES,
    LanguagePair,
    make_language_pair,
    merged,
    of_newer_transformers,
    randomised,
)
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions

COPY = MigrationOptions(method="copy")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
pytestmark = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`", "ignore:PiSSA changes the base weights"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    targets = ["embed_tokens", "q_proj", "down_proj"]
    folder = tmp_path_factory.mktemp("leftovers")
    return make_language_pair(folder, "mistral", copies=True, target_modules=targets)


def written(
    pair: LanguagePair, folder: Path, renamed: Callable[[str], str] = str, **fields: Any
) -> Path:
    """The adapter under other keys, with other fields in its configuration."""
    folder.mkdir()
    tensors = load_file(pair.adapter / WEIGHTS)
    save_file({renamed(key): array for key, array in tensors.items()}, folder / WEIGHTS)
    config = json.loads((pair.adapter / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize(
    "renamed",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda key: key.replace(".self_attn.", "._orig_mod.self_attn."),
        lambda key: key.replace(".lora_A.", ".lora_A.default.").replace(
            ".lora_B.", ".lora_B.default."
        ),
        lambda key: key.replace("lora_embedding_A", "lora_embedding_A.default").replace(
            "lora_embedding_B", "lora_embedding_B.default"
        ),
    ],
    ids=["compiled", "compiled-inside", "compiled-layers", "named", "named-embedding"],
)
def test_levels_and_names_in_keys_say_nothing(
    pair: LanguagePair, renamed: Callable[[str], str], tmp_path: Path
) -> None:
    folder = written(pair, tmp_path / "given", renamed)
    keys = load_file(folder / WEIGHTS).keys()
    assert keys != load_file(pair.adapter / WEIGHTS).keys()
    base = load_base_model(pair.source)
    given, found = (load_adapter(path, base.spec) for path in (pair.adapter, folder))
    assert found.fingerprint == given.fingerprint
    migrate_file(folder, pair.source, pair.target, tmp_path / "out", COPY)
    migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "plain", COPY)
    plain = load_file(tmp_path / "plain" / WEIGHTS)
    for key, array in load_file(tmp_path / "out" / WEIGHTS).items():
        np.testing.assert_array_equal(array, plain[key])


@pytest.mark.parametrize(
    "targets",
    [
        "all-linear",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)|(?:\bmodel\.layers"
        r"\.[\d]{1,}\.(?:self_attn|mlp)\.(?:q_proj|down_proj))|.*embed_tokens",
    ],
    ids=["all-linear", "regex"],
)
def test_what_targets_are_called_is_read_from_the_tensors(
    pair: LanguagePair, targets: str, tmp_path: Path
) -> None:
    name = "unsloth/mistral-7b-bnb-4bit"
    fields: dict[str, Any] = {"target_modules": targets, "base_model_name_or_path": name}
    given = written(pair, tmp_path / "given", **fields)
    migrate_file(given, pair.source, pair.target, tmp_path / "out", COPY)
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(pair.target)
    key = "model.layers.1.mlp.down_proj.weight"
    origin = pair.source_name(key)
    wanted = merged(pair.source_net, pair.adapter).state_dict()[origin]
    wanted = (wanted - pair.source_net.state_dict()[origin]).numpy()
    found = merged(pair.target_net, tmp_path / "out").state_dict()[key]
    found = (found - pair.target_net.state_dict()[key]).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-7)


@pytest.fixture(scope="module")
def pissa(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder with both files, the base model, and the model that was trained."""
    folder = tmp_path_factory.mktemp("pissa")
    net = FAMILIES["mistral"].build(1, seed=0)
    net.save_pretrained(folder / "base")
    fields = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    config = LoraConfig(init_lora_weights="pissa", task_type="CAUSAL_LM", **fields)
    with of_newer_transformers():
        adapted: Any = get_peft_model(FAMILIES["mistral"].build(1, seed=0), config)
    adapted.peft_config["default"].init_lora_weights = True  # as peft says: keep what it began with
    adapted.save_pretrained(str(folder / "initial"))
    adapted.peft_config["default"].init_lora_weights = "pissa"
    randomised(adapted)
    adapted.save_pretrained(str(folder / "plain"))
    adapted.save_pretrained(
        str(folder / "converted"), path_initial_model_for_weight_conversion=str(folder / "initial")
    )
    return folder, net, adapted.merge_and_unload()


def test_a_start_that_changed_the_base_model_is_refused(
    pissa: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    folder, _, _ = pissa
    with pytest.raises(AdapterRefused, match="changed the base weights") as refused:
        migrate_file(folder / "plain", folder / "base", folder / "base", tmp_path / "out", COPY)
    assert refused.value.code is Refusal.UNSUPPORTED_ALGORITHM


def test_converted_it_is_exact(pissa: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, net, trained = pissa
    migrate_file(folder / "converted", folder / "base", folder / "base", tmp_path / "out", COPY)
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["r"] == 6
    found = merged(net, tmp_path / "out").state_dict()
    for key, weight in trained.state_dict().items():
        np.testing.assert_allclose(found[key].numpy(), weight.numpy(), atol=2e-6)


@pytest.fixture(scope="module")
def dora(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    """Of a model that has its weights the other way round, with magnitudes that were trained."""
    layers = ("c_attn", "c_proj")
    made = make_language_pair(
        tmp_path_factory.mktemp("dora"), "gpt2", depth=1, kept=(0,), layers=layers, use_dora=True
    )
    tensors = load_file(made.adapter / WEIGHTS)
    rng = np.random.default_rng(0)
    for key in (key for key in tensors if "magnitude" in key):
        tensors[key] *= 1 + 0.1 * rng.random(tensors[key].shape, np.float32)
    save_file(tensors, made.adapter / WEIGHTS)
    return made


@pytest.mark.parametrize("options", [{"dora": "keep"}, {"factor_rank": "exact"}], ids=str)
def test_dora_is_what_peft_merges(
    dora: LanguagePair, options: dict[str, Any], tmp_path: Path
) -> None:
    copy = MigrationOptions(method="copy", **options)
    migrate_file(dora.adapter, dora.source, dora.source, tmp_path / "out", copy)
    kept = any("magnitude" in key for key in load_file(tmp_path / "out" / WEIGHTS))
    assert kept == ("dora" in options)
    wanted, found = (
        merged(dora.source_net, folder).state_dict() for folder in (dora.adapter, tmp_path / "out")
    )
    for key, weight in wanted.items():
        np.testing.assert_allclose(found[key].numpy(), weight.numpy(), atol=1e-6)
