"""Rows by token string, of a base model that is a GGUF file; gguf writes it, `tokenizers` and peft
say what comes of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from language_models import FAMILIES, SIZES, LanguagePair, make_language_pair, merged
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from prolora_jax.errors import BaseModelError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.matching.tokens import TokenMap
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.one_tokenizer import require_one_tokenizer
from prolora_jax.migration.tokens import PairTokens
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file
from prolora_jax.verification.tokens import tokens_of

SIZE, EMBEDDING, HEAD = SIZES["vocab_size"], "model.embed_tokens", "lm_head"
COPY, KIND = MigrationOptions(method="copy"), gguf.TokenType
SPACE, OF_BYTES = "\u2581", "\u0120"
LAYERS = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"} | {
    f"{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")
}
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")


def write_gguf(
    file: Path,
    net: Any,
    tokens: Sequence[str] = (),
    kinds: Sequence[int] = (),
    model: str = "gpt2",
) -> Path:
    """A tiny Mistral by gguf, in its order of the rows of q and k, with its tokens."""
    writer = gguf.GGUFWriter(file, "llama")
    heads = {"q_proj": SIZES["num_attention_heads"], "k_proj": SIZES["num_key_value_heads"]}
    writer.add_head_count(heads["q_proj"])
    writer.add_head_count_kv(heads["k_proj"])
    writer.add_block_count(net.config.num_hidden_layers)
    if tokens:
        writer.add_tokenizer_model(model)
        writer.add_token_list(list(tokens))
    if kinds:
        writer.add_token_types(list(kinds))
    for name, weight in net.state_dict().items():
        array = weight.numpy()
        if ".layers." in name and array.ndim == 2:
            _, _, number, _, layer, _ = name.split(".")
            if layer in heads:
                array = array.reshape(heads[layer], 2, -1, array.shape[1])
                array = np.ascontiguousarray(array.swapaxes(1, 2)).reshape(weight.shape)
            writer.add_tensor(f"blk.{number}.{LAYERS[layer]}.weight", array)
        elif array.ndim == 2:
            writer.add_tensor("output.weight" if HEAD in name else "token_embd.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    """Mistral of one layer with its own head; embedding and head are adapted."""
    folder = tmp_path_factory.mktemp("gguf_tokens")
    targets = ["embed_tokens", "lm_head", "q_proj"]
    return make_language_pair(folder, "mistral", depth=1, kept=(0,), target_modules=targets)


def tokenizer_of(kind: str) -> Tokenizer:
    """Fewer tokens than the embedding has rows: of bytes, or as SentencePiece spells them."""
    if kind == "gpt2":
        numbers = [f"{OF_BYTES}the", "the", f"{OF_BYTES}a", "é", "ab", "a", "b", "<0x0A>"]
        found = Tokenizer(models.BPE({t: n for n, t in enumerate(numbers)}, [("a", "b")]))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = decoders.ByteLevel()
    else:
        numbers = [f"{SPACE}the", "<0x0A>", "b", "the", "a", "é", f"{SPACE}a", "ab"]
        bpe = models.BPE({t: n for n, t in enumerate(numbers)}, [("a", "b")], byte_fallback=True)
        found = Tokenizer(bpe)
        found.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback()])
    found.add_special_tokens([AddedToken("<s>", special=True)])
    found.add_tokens([AddedToken(f"<tool{SPACE}x>" if kind == "llama" else "<tool x>")])
    return found


def as_gguf(tokenizer: Tokenizer, kind: str) -> tuple[list[str], list[int]]:
    """A vocabulary with its kinds as llama.cpp's converter lists it, a token for each row."""
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    tokens = [f"[PAD{number}]" for number in range(SIZE)]
    kinds: list[int] = [KIND.UNUSED] * SIZE
    for token, number in numbers.items():
        tokens[number], kinds[number] = token, KIND.NORMAL
        if number in added:
            special = added[number].special
            kinds[number] = KIND.CONTROL if special else KIND.USER_DEFINED
            tokens[number] = token if special else token.replace(SPACE, " ")
        elif token.startswith("<0x") and kind == "llama":
            kinds[number] = KIND.BYTE
    return tokens, kinds


def saved(pair: LanguagePair, folder: Path, form: str, kind: str, order: int = 0) -> Path:
    """A model with a tokenizer of a kind, as a folder or as a GGUF file; the source's weights."""
    folder.mkdir(parents=True)
    tokenizer = tokenizer_of(kind)
    tokenizer.add_tokens([f"more{order}{n}" for n in range(order)])
    if form == "gguf":
        return write_gguf(folder / "a.gguf", pair.source_net, *as_gguf(tokenizer, kind), model=kind)
    pair.source_net.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def map_of(source: Path, target: Path) -> TokenMap:
    found = PairTokens(load_base_model(source), load_base_model(target)).map
    assert found is not None
    return found


def map_by_verify(pair: LanguagePair, source: Path, target: Path) -> TokenMap:
    adapter = load_adapter(pair.adapter)
    found = tokens_of(adapter, load_base_model(source), load_base_model(target))
    assert found is not None
    return found


@pytest.mark.parametrize("kinds", [("gpt2", "gpt2"), ("llama", "llama"), ("gpt2", "llama")])
def test_a_header_and_a_tokenizer_json_give_the_same_rows(
    pair: LanguagePair, kinds: tuple[str, str], tmp_path: Path
) -> None:
    folders = [saved(pair, tmp_path / f"json{n}", "json", k, n) for n, k in enumerate(kinds)]
    files = [saved(pair, tmp_path / f"gguf{n}", "gguf", k, n) for n, k in enumerate(kinds)]
    wanted = map_of(folders[0], folders[1])
    first, second = (tokenizer_of(kind).get_vocab(with_added_tokens=True) for kind in kinds)
    alike = kinds[0] == kinds[1]
    # Of unlike kinds a space, a letter beyond ASCII and a byte are spelled in unlike ways.
    common = (*first,) if alike else ("the", "ab", "a", "b", "<s>")
    assert wanted.numbers == {first[token]: second[token] for token in common}
    assert {*wanted.missing} == {*first} - {*common}
    for source, target in [(files[0], files[1]), (files[0], folders[1]), (folders[0], files[1])]:
        assert map_of(source, target) == wanted
        assert map_by_verify(pair, source, target) == wanted


def test_each_token_s_row_goes_to_that_token_s_in_a_gguf_file(
    pair: LanguagePair, tmp_path: Path
) -> None:
    names = [f"token{number}" for number in range(SIZE)]
    order = np.random.default_rng(5).permutation(SIZE)[: SIZE - 3]
    (tmp_path / "target").mkdir()
    net = FAMILIES["mistral"].build(1, seed=1)
    net.resize_token_embeddings(len(order))
    weights = {
        name: weight[torch.from_numpy(order)] if len(weight) == SIZE else weight
        for name, weight in pair.target_net.state_dict().items()
    }
    net.load_state_dict(weights)
    source = write_gguf(tmp_path / "source.gguf", pair.source_net, names)
    target = write_gguf(tmp_path / "target/t.gguf", net, [names[n] for n in order])
    found = migrate_file(pair.adapter, source, target, tmp_path / "out", COPY)
    whole, before = merged(pair.source_net, pair.adapter).state_dict(), pair.source_net.state_dict()
    moved = merged(net, tmp_path / "out").state_dict()
    for name in (f"{EMBEDDING}.weight", f"{HEAD}.weight"):
        wanted = (whole[name] - before[name])[torch.from_numpy(order)]
        assert wanted.any()
        torch.testing.assert_close(moved[name] - weights[name], wanted, atol=3e-7, rtol=0)
    left = [token for token in names if token not in {names[n] for n in order}]
    assert found.report.flags == (f"tokens-missing: 3, first {', '.join(map(repr, left))}",)
    assert verify_file(tmp_path / "out").ok


def test_of_two_tokens_alike_the_later_is_meant_and_one_without_letters_is_none(
    pair: LanguagePair, tmp_path: Path
) -> None:
    one = write_gguf(tmp_path / "one.gguf", pair.source_net, ["a", "b", "a", ""], model="llama")
    two = write_gguf(tmp_path / "two.gguf", pair.source_net, ["b", "a", ""], model="llama")
    assert map_of(one, two) == map_by_verify(pair, one, two)
    assert map_of(one, two) == TokenMap({1: 0, 2: 1}, ())


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv"])
def test_tokens_that_are_respelled_there_are_not_known(
    pair: LanguagePair, model: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "a.gguf", pair.source_net, ["a", "b"], model=model)
    assert load_base_model(file).tokenizer() is None
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    assert load_base_model(file).tokenizer() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("tokens", "kinds", "words"),
    [
        (["a"] * (SIZE + 1), [], f"found {SIZE + 1} tokens and {SIZE} rows .*a row for each"),
        (["a", "b" * (2**16 + 1)], [], "found a string of 65537 bytes; at most 65536"),
        (["a", "b"], [1], "found 2 tokens and 1 kinds of them; expected one for each"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    pair: LanguagePair, tokens: list[str], kinds: list[int], words: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "a.gguf", pair.source_net, tokens, kinds)
    with pytest.raises(BaseModelError, match=words):
        load_base_model(file).tokenizer()


def test_a_header_says_whether_one_model_can_learn_from_the_other_s_texts(
    pair: LanguagePair, tmp_path: Path
) -> None:
    folder = load_base_model(saved(pair, tmp_path / "folder", "folder", "gpt2"))
    tokens, kinds = as_gguf(tokenizer_of("gpt2"), "gpt2")
    model = load_base_model(write_gguf(tmp_path / "a.gguf", pair.source_net, tokens, kinds))
    known = tokenizer_of("gpt2").get_vocab_size()
    assert require_one_tokenizer(model, folder, (SIZE, SIZE)) == known
    tokens[0], tokens[1] = tokens[1], tokens[0]
    file = write_gguf(tmp_path / "b.gguf", pair.source_net, tokens, kinds)
    with pytest.raises(BaseModelError, match="as 0 and as 1; expected one tokenizer for both"):
        require_one_tokenizer(load_base_model(file), folder, (SIZE, SIZE))
    bare = load_base_model(write_gguf(tmp_path / "c.gguf", pair.source_net))
    assert require_one_tokenizer(bare, folder, (SIZE, SIZE)) == SIZE
    with pytest.raises(BaseModelError, match=r"put tokenizer.json into .*c.gguf"):
        require_one_tokenizer(bare, folder, (SIZE, SIZE + 1))
