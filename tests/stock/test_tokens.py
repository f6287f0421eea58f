"""CLIP's tokenizer against those that transformers had until 5, slow and fast."""

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
from transformers.models.clip.tokenization_clip_fast import CLIPTokenizerFast

from prolora_jax.io.base_models.tokenizer_files import read_tokenizer
from prolora_jax.nets.text.tokens import ClipTokenizer


def opened(folder: Path) -> CLIPTokenizer:
    made = CLIPTokenizer.from_pretrained(folder)
    assert made.fix_text is None  # with ftfy installed it would clean texts in another way
    return made


def ours(folder: Path) -> ClipTokenizer:
    return ClipTokenizer(read_tokenizer(folder), 77)


def wanted(tokenizer: Any, texts: list[str]) -> np.ndarray:
    return tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np"
    ).input_ids


# Written by hand, as published, and by transformers; SDXL's second tokenizer and SD 2's fill up
# with exclamation marks.
@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def both(request, tmp_path_factory) -> tuple[Path, CLIPTokenizer, ClipTokenizer]:
    place = tmp_path_factory.mktemp("tokens")
    theirs = opened(write_published(place / "published", pad=request.param))
    theirs.save_pretrained(place / "slow")
    for text in TEXTS:
        assert ours(place / "slow").ids(text) == ours(place / "published").ids(text)
    return place / "slow", theirs, ours(place / "slow")


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
    theirs = opened(write_published(tmp_path / "published"))
    theirs.add_tokens(["<style>", "Inkling"])
    theirs.save_pretrained(tmp_path / "a")
    texts = ["ink in<style>, Inklings inkling", "<STYLE>"]
    mine = ours(tmp_path / "a")
    assert_array_equal(mine(texts), wanted(theirs, texts))
    assert mine.size == len(theirs)
    # As older versions wrote them, in files of their own.
    edit(tmp_path / "a" / "tokenizer_config.json", added_tokens_decoder=None, pad_token="a")
    edit(tmp_path / "a" / "special_tokens_map.json", pad_token={"content": "!"})
    old = opened(tmp_path / "a")
    assert old.pad_token == "!"
    assert_array_equal(ours(tmp_path / "a")(texts), wanted(old, texts))
