"""CLIP's tokenizer against transformers', slow and fast, and what is refused of its files."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from tiny_pipelines import edit
from transformers.models.clip.tokenization_clip import CLIPTokenizer, bytes_to_unicode
from transformers.models.clip.tokenization_clip_fast import CLIPTokenizerFast

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.base_models.tokenizer_files import read_tokenizer
from prolora_jax.nets.text.tokens import ClipTokenizer

LENGTH = 12
MERGES = ["i n", "in k</w>", "a n", "t h", "th e</w>", "p a", "pa p", "e r</w>", "pap er</w>"]
MERGES += ["! !</w>", ". .", ".. .</w>", "Ã ©</w>", "' s</w>", "1 2</w>", "d r", "dr a", "a w</w>"]
TEXTS = [
    "",
    "a drawing in Ink",
    "THE  paper,\tfolded\nfour\u00a0times: 12345 1/2",
    "cafe\u0301 café CAFÉ naïve ΟΔΟΣ İstanbul",
    "the artist's, they've, I'm, DON'T, we'll, he'd",
    "墨で描いた 紙 折り紙 한국어 ไทย",
    "zero\u200bwidth \x00null \x07bell \ufffd \u2028line\u2029 soft\u00adhyphen",
    "👩\u200d🎨 paints 🎨🎨 ½ ² ①",
    "wow!!! ... ??? !! a!b",
    "<|startoftext|>in<|endoftext|>k <|ENDOFTEXT|> <|end",
    "ink_paper-the@home #1 (a:1.2) [b] {c} \\",
    "paper " * 30,
]


def write(folder: Path, *, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A tokenizer with some merges, opened by transformers and saved by it."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in MERGES] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    made = CLIPTokenizer(*files, pad_token=pad, model_max_length=LENGTH)
    assert made.fix_text is None  # with ftfy installed it would clean texts in another way
    made.save_pretrained(str(folder))
    return made


def ours(folder: Path, most: int = 77) -> ClipTokenizer:
    return ClipTokenizer(read_tokenizer(folder), most)


def wanted(tokenizer: Any, texts: list[str]) -> np.ndarray:
    return tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np"
    ).input_ids


# SDXL's second tokenizer and SD 2's fill up with exclamation marks.
@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def both(request, tmp_path_factory) -> tuple[Path, Any, ClipTokenizer]:
    folder = tmp_path_factory.mktemp("tokens") / "slow"
    theirs = write(folder, pad=request.param)
    return folder, theirs, ours(folder)


def test_numbers_equal_transformers(both):
    _, theirs, mine = both
    assert_array_equal(mine(TEXTS), wanted(theirs, TEXTS))
    for text in TEXTS:
        assert mine.ids(text) == theirs(text, add_special_tokens=False).input_ids, text
    assert (mine.length, mine.size) == (LENGTH, len(theirs))
    assert (mine.begin, mine.end, mine.pad) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )


PIECES = ["in", "k", "The", " ", "!", "'s", "1", "é", "e\u0301", "墨", "\t", "\u200b", "🎨", "..."]


@example(["a", "\ud800", "b"])
@given(st.lists(st.sampled_from([*PIECES, "<|endoftext|>"]) | st.characters(), max_size=8))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_text(both, pieces):
    _, theirs, mine = both
    text = "".join(pieces)
    assert mine.ids(text) == theirs(text, add_special_tokens=False).input_ids


def test_one_file(both, tmp_path):
    folder, _, _ = both
    fast = CLIPTokenizerFast.from_pretrained(folder)
    fast.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    assert_array_equal(ours(tmp_path)(TEXTS), wanted(fast, TEXTS))


def test_added_tokens_are_never_split(tmp_path):
    theirs = write(tmp_path / "a")
    theirs.add_tokens(["<style>", "Inkling"])
    theirs.save_pretrained(tmp_path / "a")
    texts = ["ink in<style>, Inklings inkling", "<STYLE>"]
    mine = ours(tmp_path / "a")
    assert_array_equal(mine(texts), wanted(theirs, texts))
    assert mine.size == len(theirs)
    # As older versions wrote them, in files of their own.
    edit(tmp_path / "a" / "tokenizer_config.json", added_tokens_decoder=None, pad_token="a")
    edit(tmp_path / "a" / "special_tokens_map.json", pad_token={"content": "!"})
    old = CLIPTokenizer.from_pretrained(tmp_path / "a")
    assert old.pad_token == "!"
    assert_array_equal(ours(tmp_path / "a")(texts), wanted(old, texts))


def test_the_length_is_the_smaller_one(both, tmp_path):
    folder, _, mine = both
    assert ours(folder, 5)(["a b c d e f"]).shape == (1, 5)
    write(tmp_path / "a")
    edit(tmp_path / "a" / "tokenizer_config.json", model_max_length=10**30)
    assert ours(tmp_path / "a", 20).length == 20
    assert mine.framed(range(100))[-2:] == [9, mine.end]


def test_half_a_character_is_no_error(both):
    _, _, mine = both
    assert mine.ids("in\ud800k") == mine.ids("ink")


def gone(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def holds(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def says(name: str, **fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **fields)


def whole(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "vocab.json").unlink()
        (folder / "tokenizer.json").write_text(text)

    return change


CONFIG = "tokenizer_config.json"


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (gone("merges.txt"), "merges.txt: found .*; expected a text of a CLIP tokenizer; fetch"),
        (holds("vocab.json", "{"), "vocab.json: found no JSON .*; expected a JSON object"),
        (holds("vocab.json", "[]"), "vocab.json: found list; expected a JSON object"),
        (holds("vocab.json", '{"a": "b"}'), "vocab.json: found 'b' for 'a'; expected the number"),
        (holds("vocab.json", '{"a": -1}'), "vocab.json: found -1 for 'a'; expected the number"),
        (holds("merges.txt", "#\na b c"), "merges.txt: found 3 tokens in line 2; expected two"),
        (holds("merges.txt", "#\nq z"), "a: found .*qz.*; expected files that fit each other"),
        (says(CONFIG, pad_token=3), f"{CONFIG}: found pad_token 3; expected a token"),
        (says(CONFIG, pad_token="[P]"), r"a: found no token '\[P\]' in the vocabulary; expected"),
        (says(CONFIG, padding_side="left"), f"{CONFIG}: found padding_side 'left'; expected 'ri"),
        (says(CONFIG, added_tokens_decoder=[1]), r"found added_tokens_decoder \[1\]; expected tok"),
        (
            says(CONFIG, added_tokens_decoder={"1": {"content": "<s>"}}),
            "a: found number 1 for the added token '<s>'; expected another than that of '",
        ),
        (whole('{"model": {"type": "Unigram"}}'), "tokenizer.json: found another model; expec"),
        (whole('{"model": {"type": "BPE"}}'), "a: found .*; expected files that fit each other"),
    ],
)
def test_what_is_refused(spoil, match, tmp_path):
    write(tmp_path / "a")
    spoil(tmp_path / "a")
    with pytest.raises(BaseModelError, match=match) as caught:
        ours(tmp_path / "a")
    assert caught.value.code is Refusal.UNREADABLE_BASE
    assert str(caught.value).startswith(str(tmp_path / "a"))
    assert "\n" not in str(caught.value)


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"tokenizers: found no .*\[pipelines\]") as caught:
        ours(tmp_path / "a")
    assert caught.value.code is Refusal.MISSING_LIBRARY
