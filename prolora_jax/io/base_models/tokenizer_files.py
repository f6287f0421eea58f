"""The files of a CLIP tokenizer, read and checked: its vocabulary, merges and special tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.documents import BadDocument, read_json_document, read_text_document

_SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_MOST_MERGES = 49152 - 256 - 2 + 1  # CLIP's file goes on beyond what its vocabulary was made of


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer's folder says.

    Attributes:
        origin: the folder, for messages.
        vocabulary: numbers by token; empty where all is in `whole`.
        merges: pairs of tokens that become one, the first before the others.
        whole: `tokenizer.json`, where there is no vocabulary beside it.
        begin: token that every prompt begins with.
        end: token that it ends with.
        unknown: token for what the vocabulary does not have.
        pad: token that fills up short prompts.
        added: numbers of further tokens that are never split, by token.
        length: tokens of a prompt; None where the files do not say.
    """

    origin: Path
    vocabulary: Mapping[str, int] = field(repr=False)
    merges: tuple[tuple[str, str], ...] = field(repr=False)
    whole: str | None = field(repr=False)
    begin: str
    end: str
    unknown: str
    pad: str
    added: Mapping[str, int]
    length: int | None


def is_whole(folder: Path) -> bool:
    """Whether a tokenizer's folder has only the one file that transformers writes since 5."""
    return (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").exists()


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """The tokenizer in a folder of transformers.

    Args:
        folder: with `vocab.json` and `merges.txt`, or `tokenizer.json` alone.

    Returns:
        Its files, checked each for itself.

    Raises:
        BaseModelError: a file is missing or damaged, or asks for what is not supported.
    """
    whole, vocabulary, merges = None, {}, ()
    if is_whole(folder):
        whole = _text(folder / "tokenizer.json")
        model = _json(folder / "tokenizer.json").get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            _refuse(folder / "tokenizer.json", "another model", "byte pair encoding (BPE)")
    else:
        vocabulary = _numbers(folder / "vocab.json", _json(folder / "vocab.json"))
        merges = _merges(folder / "merges.txt")
    config = _json(folder / "tokenizer_config.json", missing={})
    special, added = _special(folder, config)
    for side in ("padding_side", "truncation_side"):
        if config.get(side) not in {None, "right"}:
            found = f"{side} {config[side]!r}"
            _refuse(folder / "tokenizer_config.json", found, "'right'")
    length = config.get("model_max_length")
    return TokenizerFiles(
        folder,
        vocabulary,
        merges,
        whole,
        *(special[name] for name in _SPECIAL),
        added=added,
        # Where transformers knows of no limit it writes 1e30.
        length=int(length) if isinstance(length, int | float) and 2 < length < 1e6 else None,
    )


def _merges(file: Path) -> tuple[tuple[str, str], ...]:
    # Its first line is the version. Not splitlines(): some tokens are line ends to Unicode.
    lines = _text(file).strip().split("\n")[1:_MOST_MERGES]
    pairs = [tuple(line.split()) for line in lines]
    for number, pair in enumerate(pairs, 2):
        if len(pair) != 2:
            _refuse(file, f"{len(pair)} tokens in line {number}", "two in each")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _special(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, int]]:
    """Special tokens by role, and the numbers of added tokens, as transformers takes them."""
    listed, added = config.get("added_tokens_decoder"), {}
    given = dict(config)
    if listed is None:
        # Before transformers 4.34 these were files of their own.
        given |= _json(folder / "special_tokens_map.json", missing={})
        file = folder / "added_tokens.json"
        added = _numbers(file, _json(file, missing={}))
    else:
        file = folder / "tokenizer_config.json"
        if not isinstance(listed, dict) or not all(key.isdecimal() for key in listed):
            _refuse(file, f"added_tokens_decoder {listed!r:.60}", "tokens by number")
        added = {_token(file, "added_tokens_decoder", t): int(key) for key, t in listed.items()}
    file = folder / "tokenizer_config.json"
    roles = {
        role: default if given.get(role) is None else _token(file, role, given[role])
        for role, default in _SPECIAL.items()
    }
    return roles, added


def _token(file: Path, role: str, value: Any) -> str:
    """A token, written as it is or as a record of it."""
    found = value.get("content") if isinstance(value, dict) else value
    if not isinstance(found, str) or not found:
        _refuse(file, f"{role} {value!r:.60}", "a token")
    return found


def _numbers(file: Path, document: Mapping[str, Any]) -> dict[str, int]:
    for token, number in document.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**31:
            _refuse(file, f"{number!r:.60} for {token!r:.60}", "the number of each token")
    return dict(document)


def _json(file: Path, *, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file; `missing` where there is no such file."""
    if missing is not None and not file.exists():
        return missing
    try:
        found = read_json_document(file)
    except BadDocument as failure:
        _refuse(file, f"{failure}", "a JSON object")
    if not isinstance(found, dict):
        _refuse(file, f"found {type(found).__name__}", "a JSON object")
    return found


def _text(file: Path) -> str:
    try:
        return read_text_document(file)
    except BadDocument as failure:
        _refuse(file, f"{failure}", "a text")


def _refuse(file: Path, found: str, expected: str) -> NoReturn:
    found = found if found.startswith("found") else f"found {found}"
    raise BaseModelError(
        f"{file}: {found}; expected {expected} of a CLIP tokenizer; fetch the whole pipeline",
        code=Refusal.UNREADABLE_BASE,
    ) from None
