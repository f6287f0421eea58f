"""CLIP's tokenizer against transformers', and what is refused of its files.

What transformers 5 takes otherwise than 4.57, which ours follows, is said and asked here;
tests/stock has the two tokenizers of 4.57.
"""

import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_tokens import LENGTH, PIECES, TEXTS, write_published
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from tiny_pipelines import edit
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.base_models.tokenizer_files import read_tokenizer
from prolora_jax.nets.text.tokens import ClipTokenizer


def ours(folder: Path, most: int = 77) -> ClipTokenizer:
    return ClipTokenizer(read_tokenizer(folder), most)


def wanted(tokenizer: Any, texts: list[str]) -> np.ndarray:
    return tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np"
    ).input_ids


# SDXL's second tokenizer and SD 2's fill up with exclamation marks.
@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def both(request, tmp_path_factory) -> tuple[Path, Any, ClipTokenizer]:
    folder = write_published(tmp_path_factory.mktemp("tokens") / "a", pad=request.param)
    return folder, CLIPTokenizer.from_pretrained(folder), ours(folder)


IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f"


def as_before(text: str) -> str:
    """A text that transformers 5 takes as 4.57 took this one.

    That left out control characters and halves of characters, made each Chinese character a word,
    and knew that a sigma at the end of a word has a lower case of its own.
    """
    left_out = (c for c in text if c == "\ufffd" or unicodedata.category(c).startswith("C"))
    kept = text.translate({ord(c): None for c in left_out if c not in "\t\n\r"})
    words = re.sub(r"\w*Σ\w*", lambda word: word.group().lower(), kept)
    return re.sub(f"([{IDEOGRAPHS}])", r" \1 ", words)


def test_numbers_equal_transformers(both):
    _, theirs, mine = both
    assert_array_equal(mine(TEXTS), wanted(theirs, [as_before(text) for text in TEXTS]))
    for text in TEXTS:
        want = theirs(as_before(text), add_special_tokens=False).input_ids
        assert mine.ids(text) == want, text
    assert (mine.length, mine.size) == (LENGTH, len(theirs))
    assert (mine.begin, mine.end, mine.pad) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )


def test_what_transformers_5_takes_otherwise(both):
    _, theirs, mine = both
    differ = [t for t in TEXTS if mine.ids(t) != theirs(t, add_special_tokens=False).input_ids]
    # Chinese, control characters, a joiner of emojis, a sigma.
    begin = ["cafe\u0301", "墨で描いた", "zero\u200bwidth", "👩\u200d🎨"]
    assert [text.split()[0] for text in differ] == begin


@example(["a", "\ud800", "b"])
@given(st.lists(st.sampled_from([*PIECES, "<|endoftext|>"]) | st.characters(), max_size=8))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_text(both, pieces):
    _, theirs, mine = both
    text = "".join(pieces)
    assert mine.ids(text) == theirs(as_before(text), add_special_tokens=False).input_ids


def test_one_file(both, tmp_path):
    # What transformers writes since 5; its rules are followed as they stand in it.
    _, theirs, _ = both
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    mine = ours(tmp_path)
    assert_array_equal(mine(TEXTS), wanted(theirs, TEXTS))
    for text in TEXTS:
        assert mine.ids(text) == theirs(text, add_special_tokens=False).input_ids, text
    assert (mine.length, mine.size) == (LENGTH, len(theirs))
    assert (mine.begin, mine.end, mine.pad) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )


ADDED = ["ink in<style>, Inklings inkling", "<STYLE>"]


def test_added_tokens_are_never_split(both, tmp_path):
    theirs = CLIPTokenizer.from_pretrained(both[0])
    theirs.add_tokens(["<style>", "Inkling"])
    theirs.save_pretrained(tmp_path)
    mine = ours(tmp_path)
    assert_array_equal(mine(ADDED), wanted(theirs, ADDED))
    assert mine.size == len(theirs)


def test_the_length_is_the_smaller_one(both, tmp_path):
    folder, _, mine = both
    assert ours(folder, 5)(["a b c d e f"]).shape == (1, 5)
    write_published(tmp_path / "a")
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
    write_published(tmp_path / "a")
    spoil(tmp_path / "a")
    with pytest.raises(BaseModelError, match=match) as caught:
        ours(tmp_path / "a")
    assert caught.value.code is Refusal.UNREADABLE_BASE
    assert str(caught.value).startswith(str(tmp_path / "a"))
    assert "\n" not in str(caught.value)


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    write_published(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"tokenizers: found no .*\[pipelines\]") as caught:
        ours(tmp_path / "a")
    assert caught.value.code is Refusal.MISSING_LIBRARY
