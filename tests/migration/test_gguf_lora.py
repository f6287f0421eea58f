"""llama.cpp's LoRA files: gguf writes and reads them, transformers puts rows into its order."""

from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from language_models import FAMILIES, LanguagePair, make_language_pair, merged
from safetensors.numpy import load_file, save_file
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from prolora_jax.adapters.adapter import delta
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.adapters.inputs import expand
from prolora_jax.io.adapters.known_tables import look_at
from prolora_jax.io.adapters.whole_files import compare_files, convert_file
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers.header_tables import HeaderTables
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

COPY = MigrationOptions(method="copy")
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen3": "qwen3", "phi3": "phi3"}
ARCH = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "phi3": gguf.MODEL_ARCH.PHI3,
}
PATTERNS = {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"down_proj": 5}, "use_rslora": True}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LanguagePair, str]:
    folder = tmp_path_factory.mktemp(request.param)
    return make_language_pair(folder, request.param, **PATTERNS), ARCHITECTURES[request.param]


def read(path: Path) -> tuple[dict[str, np.ndarray], float, str]:
    """Tensors, alpha and architecture by the package's own reader."""
    reader = gguf.GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.type"] == "adapter"
    assert said["adapter.type"] == "lora"
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return tensors, said["adapter.lora.alpha"], said["general.architecture"]


def by_llama_cpp(path: Path, heads: tuple[int, int]) -> dict[str, np.ndarray]:
    """What is added to each tensor of a GGUF model, rows in transformers' order.

    Its scale is alpha / rank, the rank of each pair; of 0 it makes 1.
    """
    tensors, alpha, architecture = read(path)
    config = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    found = {}
    for name in (name for name in tensors if name.endswith(".lora_a")):
        name = name.removesuffix(".lora_a")
        a, b = (tensors[f"{name}.lora_{x}"].astype(np.float64) for x in "ab")
        scale = alpha / b.shape[1] if alpha else 1.0
        if name.startswith("token_embd"):
            found[name] = scale * a @ b.T
            continue
        found[name] = scale * b @ a
        if architecture == "llama":
            found[name] = LlamaTensorProcessor(config).process(found[name], name).weights
    return found


def by_peft(net: Any, adapter: Path) -> dict[str, np.ndarray]:
    before, after = net.state_dict(), merged(net, adapter).state_dict()
    found = {key: (after[key] - before[key]).numpy() for key in before}
    return {key: update for key, update in found.items() if update.any()}


def test_what_llama_cpp_adds_is_what_peft_adds(
    made: tuple[LanguagePair, str], tmp_path: Path
) -> None:
    pair, architecture = made
    out = tmp_path / "out.gguf"
    migrate_file(pair.adapter, pair.source, pair.target, out, COPY, Writing(format="gguf"))
    names = gguf.get_tensor_name_map(ARCH[architecture], 3)
    given, found = by_peft(pair.source_net, pair.adapter), by_llama_cpp(out, (4, 2))
    keys = [key for key in pair.target_net.state_dict() if pair.source_name(key) in given]
    wanted = {f"{names.get_name(key.removesuffix('.weight'))}.weight": key for key in keys}
    assert found.keys() == wanted.keys()
    for name, key in wanted.items():
        np.testing.assert_allclose(found[name], given[pair.source_name(key)], atol=2e-7)
    checked = verify_file(out)
    assert checked.ok, checked.problems


def test_the_way_back_is_peft_s_again(made: tuple[LanguagePair, str], tmp_path: Path) -> None:
    pair, _ = made
    convert_file(pair.adapter, "gguf", tmp_path / "there.gguf", pair.source)
    convert_file(tmp_path / "there.gguf", "peft", tmp_path / "back", pair.source)
    given, found = (
        by_peft(pair.source_net, pair.adapter),
        by_peft(pair.source_net, tmp_path / "back"),
    )
    assert found.keys() == given.keys()
    for key, update in given.items():
        np.testing.assert_allclose(found[key], update, atol=2e-7)
    # As it came, it is written again: every tensor with the same numbers.
    convert_file(tmp_path / "there.gguf", "same", tmp_path / "again.gguf", pair.source)
    first, second = read(tmp_path / "there.gguf"), read(tmp_path / "again.gguf")
    assert first[1:] == second[1:]
    for name, array in first[0].items():
        np.testing.assert_array_equal(second[0][name], array)


def test_rows_of_q_and_k_are_in_another_order_in_llama_s_architecture_alone(
    made: tuple[LanguagePair, str], tmp_path: Path
) -> None:
    """Each tensor's shape is right in either order: only numbers tell."""
    pair, architecture = made
    convert_file(pair.adapter, "gguf", tmp_path / "out.gguf", pair.source)
    tensors, alpha, _ = read(tmp_path / "out.gguf")
    given = by_peft(pair.source_net, pair.adapter)
    layers = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj"}
    if architecture == "phi3":
        layers = {"attn_qkv": "self_attn.qkv_proj"}
    layers |= {"attn_v": "self_attn.v_proj"} if architecture != "phi3" else {}
    for stem, layer in layers.items():
        a, b = (tensors[f"blk.0.{stem}.weight.lora_{x}"] for x in "ab")
        update = given[f"model.layers.0.{layer}.weight"]
        error = np.linalg.norm(alpha / b.shape[1] * b @ a - update) / np.linalg.norm(update)
        moved = architecture == "llama" and stem != "attn_v"
        assert (error > 0.5) if moved else (error < 1e-5)


def test_another_order_of_rows_is_no_difference(tmp_path: Path) -> None:
    pair = make_language_pair(tmp_path, "llama", depth=1, kept=(0,))
    convert_file(pair.adapter, "gguf", tmp_path / "out.gguf", pair.source)
    with pytest.raises(UsageError, match="rows in llama.cpp's order in q and k.*--base"):
        compare_files(pair.adapter, tmp_path / "out.gguf")
    found = compare_files(pair.adapter, tmp_path / "out.gguf", pair.source).comparison
    alone = compare_files(tmp_path / "out.gguf", tmp_path / "out.gguf").comparison
    for compared in (found, alone):
        assert not (compared.only_a)
        assert not (compared.only_b)
        assert max(one.difference or 0.0 for one in compared.modules.values()) < 1e-6


def test_what_only_readers_say_is_not_believed_of_a_file_s_header(tmp_path: Path) -> None:
    """Anybody may write a header: rows would be turned by it."""
    pair = make_language_pair(tmp_path, "llama", depth=1, kept=(0,), layers=("q_proj",))
    wanted, base = load_adapter(pair.adapter), load_base_model(pair.source).spec
    file = pair.adapter / "adapter_model.safetensors"
    said = {"tree_rows": "pairs", "tree_blocks": "9", "gguf_adapter": "{", "license": "mit"}
    save_file(load_file(file), file, said)
    for found in (load_adapter(pair.adapter, base), load_adapter(file, base)):
        assert {"license"} == found.metadata.keys() & said.keys()
        for module in wanted.modules:
            np.testing.assert_array_equal(delta(found, module.path), delta(wanted, module.path))
    look = look_at(file, HeaderTables())
    assert look is not None
    assert {"license"} == look.metadata.keys() & said.keys()
    ours = {"x.gguf_a": np.ones((2, 8), np.float32), "x.gguf_b": np.ones((8, 2), np.float32)}
    save_file(ours, file, {"gguf_adapter": "{}"})
    with pytest.raises(AdapterRefused, match="gguf_a and gguf_b"):
        load_adapter(file)


def test_an_embedding_s_pair_is_turned(tmp_path: Path) -> None:
    targets = ["embed_tokens", "q_proj"]
    pair = make_language_pair(tmp_path, "mistral", depth=1, kept=(0,), target_modules=targets)
    convert_file(pair.adapter, "gguf", tmp_path / "out.gguf", pair.source)
    tensors, _, _ = read(tmp_path / "out.gguf")
    assert tensors["token_embd.weight.lora_a"].shape == (40, 4)
    assert tensors["token_embd.weight.lora_b"].shape == (32, 4)
    wanted = by_peft(pair.source_net, pair.adapter)["model.embed_tokens.weight"]
    found = by_llama_cpp(tmp_path / "out.gguf", (4, 2))["token_embd.weight"]
    np.testing.assert_allclose(found, wanted, atol=2e-7)
    again = load_adapter(tmp_path / "out.gguf", load_base_model(pair.source).spec)
    np.testing.assert_allclose(delta(again, "lm.model.embed_tokens"), wanted, atol=2e-7)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bits_stay_16_bits(dtype: Any, tmp_path: Path) -> None:
    pair = make_language_pair(tmp_path, "qwen3", depth=1, kept=(0,))
    weights = pair.adapter / "adapter_model.safetensors"
    given = {key: a.astype(dtype) for key, a in load_file(weights).items()}
    save_file(given, weights)
    convert_file(pair.adapter, "gguf", tmp_path / "out.gguf", pair.source)
    kind = "F16" if dtype == np.float16 else "BF16"
    assert {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors} == {kind}
    convert_file(tmp_path / "out.gguf", "peft", tmp_path / "back", pair.source)
    for key, array in load_file(tmp_path / "back/adapter_model.safetensors").items():
        np.testing.assert_array_equal(array, given[key])


def write(path: Path, tensors: dict[str, np.ndarray], **values: Any) -> Path:
    writer = gguf.GGUFWriter(path, values.get("architecture", "llama"))
    writer.add_type(values.get("type", "adapter"))
    writer.add_string("adapter.type", values.get("kind", "lora"))
    writer.add_float32("adapter.lora.alpha", values.get("alpha", 4.0))
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


PAIR = {
    "blk.0.attn_q.weight.lora_a": np.ones((2, 32), np.float32),
    "blk.0.attn_q.weight.lora_b": np.ones((48, 2), np.float32),
}


@pytest.mark.parametrize(
    ("tensors", "values", "found"),
    [
        (PAIR, {"type": "model"}, "not-an-adapter"),
        (PAIR, {"kind": "other"}, "not-an-adapter"),
        (PAIR, {"architecture": "mamba"}, "mamba"),
        (PAIR | {"blk.0.attn_norm.weight": np.ones(32, np.float32)}, {}, "attn_norm"),
        (dict([*PAIR.items()][:1]), {}, "the up factor is missing"),
        (PAIR | {"stray": np.ones(32, np.float32)}, {}, "found tensor stray"),
    ],
    ids=["model", "other-kind", "other-architecture", "norm", "half-a-pair", "stray"],
)
def test_other_files_are_refused(
    tensors: dict[str, np.ndarray], values: dict[str, Any], found: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "given.gguf", tensors, **values)
    with pytest.raises(AdapterRefused, match=found):
        load_adapter(path)


def test_of_a_folder_adapters_are_taken_and_models_are_not(tmp_path: Path) -> None:
    write(tmp_path / "adapter.gguf", PAIR)
    write(tmp_path / "model.gguf", {"blk.0.attn_q.weight": np.ones((8, 8), "f4")}, type="model")
    assert [item.path.name for item in expand([tmp_path])] == ["adapter.gguf"]


def test_heads_are_not_guessed(tmp_path: Path) -> None:
    FAMILIES["llama"].build(1, seed=0).save_pretrained(tmp_path / "base")
    path, config = write(tmp_path / "given.gguf", PAIR), tmp_path / "base/config.json"
    config.write_text('{"model_type": "llama"}')
    told = load_base_model(tmp_path / "base").spec
    config.unlink()
    for spec in (told, load_base_model(tmp_path / "base").spec):
        with pytest.raises(AdapterRefused, match="how many heads") as refused:
            load_adapter(path, spec)
        assert refused.value.code is Refusal.UNREADABLE_BASE


def test_a_base_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    FAMILIES["qwen3"].build(1, seed=0).save_pretrained(tmp_path / "base")
    base = load_base_model(tmp_path / "base")
    path = write(tmp_path / "given.gguf", PAIR)
    with pytest.raises(AdapterRefused, match="architecture llama, and base model base of qwen3"):
        load_adapter(path, base.spec)


def test_an_alpha_of_0_is_a_scale_of_1_there(tmp_path: Path) -> None:
    FAMILIES["llama"].build(1, seed=0).save_pretrained(tmp_path / "base")
    path = write(tmp_path / "given.gguf", PAIR, alpha=0.0)
    adapter = load_adapter(path, load_base_model(tmp_path / "base").spec)
    np.testing.assert_array_equal(delta(adapter, "lm.model.layers.0.self_attn.q_proj"), 2.0)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_layers_without_a_tensor_there_are_refused(tmp_path: Path) -> None:
    tied = make_language_pair(
        tmp_path / "tied", "llama", depth=1, kept=(0,), target_modules=["lm_head"]
    )
    with pytest.raises(AdapterRefused, match=r"lm_head.*have no tensor for"):
        convert_file(tied.adapter, "gguf", tmp_path / "out.gguf", tied.source)
    experts = make_language_pair(
        tmp_path / "experts", "mixtral", depth=1, kept=(0,), layers=("q_proj",)
    )
    with pytest.raises(AdapterRefused, match="another architecture"):
        convert_file(experts.adapter, "gguf", tmp_path / "out.gguf", experts.source)
