"""Tokens of two base models, read anew: which rows of an embedding or a head go where.

Read by the standard library's JSON, entry by entry, and not by what made the file.
"""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np

from prolora_jax.adapters.adapter import Adapter, Companion, LoraModule
from prolora_jax.io.base_models.gguf_tokens import GgufTokens
from prolora_jax.matching.tokens import TokenMap
from prolora_jax.matching.vocabularies import vocabulary_of_json
from prolora_jax.plans.companions import OF_TOKENS
from prolora_jax.plans.token_flags import layers_of_tokens
from prolora_jax.verification.weights import Weights

_PLAIN, _BYTE = re.compile("[ -~]+"), re.compile("<0x..>")


def tokens_of(before: Adapter, source: Weights, target: Weights) -> TokenMap | None:
    """The tokens of two base models; None where they are not known, or an adapter has no use.

    Args:
        before: the input.
        source: base model of the input.
        target: base model of the file.

    Raises:
        BaseModelError: a tokenizer is damaged.
    """
    beside = any(c.part in OF_TOKENS for c in before.companions)
    if not beside and not layers_of_tokens(module.path for module in before.modules):
        return None
    contents = [_content(model) for model in (source, target)]
    if contents[0] is None or contents[1] is None:
        return None
    (theirs, of_bytes), (ours, also) = (
        _numbers(content, model)
        for content, model in zip(contents, (source, target), strict=True)
        if content is not None
    )
    both = theirs.keys() & ours.keys()
    if of_bytes != also:  # printable ASCII is the same text in both, and nothing else is
        both = {t for t in both if _PLAIN.fullmatch(t) and not _BYTE.fullmatch(t)}
    missing = sorted(theirs.keys() - both, key=lambda token: theirs[token])
    return TokenMap({theirs[t]: ours[t] for t in both}, tuple(missing))


def _content(model: Weights) -> bytes | GgufTokens | None:
    read = getattr(model, "tokenizer", None)  # models in memory have none
    return None if read is None else read()


def _numbers(content: bytes | GgufTokens, model: Weights) -> tuple[dict[str, int], bool]:
    """Numbers by token, and whether letters of a token are bytes."""
    if isinstance(content, GgufTokens):
        return _numbers_of_gguf(content), content.model == "gpt2"
    try:
        document: Any = json.loads(content)
        listed = document["model"]["vocab"]
        found = dict(listed) if isinstance(listed, dict) else {}
        if not found:
            for number, entry in enumerate(listed):
                found[entry[0]] = number
        for added in document.get("added_tokens") or ():
            found[added["content"]] = added["id"]
        if any(number < 0 for number in found.values()):
            raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
        # The same refusal as everywhere; it says what is wrong.
        return vocabulary_of_json(content, getattr(model, "location", model.spec.name))
    parts = json.dumps([document.get("pre_tokenizer"), document.get("decoder")])
    return found, '"type": "ByteLevel"' in parts


def _numbers_of_gguf(content: GgufTokens) -> dict[str, int]:
    added = 4 if content.model == "llama" else None
    found = {}
    for number in reversed(range(len(content.tokens))):  # the last of two alike
        token, kind = content.tokens[number], content.kinds[number] if content.kinds else 5
        token = "\u2581".join(token.split(" ")) if kind == added else token
        if token and (kind, token) != (5, f"[PAD{number}]"):
            found.setdefault(token, number)
    return found


def by_token(before: LoraModule, tokens: TokenMap, count: int) -> LoraModule:
    """An update row by row, each where its token is.

    Args:
        before: the input's module.
        tokens: of both base models.
        count: rows of the target's layer.
    """
    up = np.zeros((count, *before.up.shape[1:]), before.up.dtype)
    for row, values in enumerate(before.up):
        number = tokens.number(row)
        if number is not None and 0 <= number < count:
            up[number] = values
    return replace(before, up=up)


def whole_rows_hold(
    written: Companion,
    own: Companion,
    scale: float,
    models: tuple[Weights, Weights],
    tokens: TokenMap | None,
) -> bool:
    """Whether each row of the target that is there changes by what its token's has changed by.

    Args:
        written: of the output.
        own: of the input.
        scale: that multiplies every update.
        models: source and target.
        tokens: of both; where they are not known, a number is one token in both.
    """
    count, given = models[1].weight(own.path).shape[0], {}
    for place, row in enumerate(own.rows):
        number = row if tokens is None else tokens.number(row)
        if number is not None and number < count:
            given[number] = place
    if {*written.rows} != {*given} or written.array.shape[0] != len(written.rows):
        return False
    places = [given[row] for row in written.rows]
    source = models[0].weight(own.path)[[own.rows[p] for p in places]].astype(np.float64)
    target = models[1].weight(own.path)[list(written.rows)].astype(np.float64)
    wanted = target + scale * (own.array[places].astype(np.float64) - source)
    error = np.abs(written.array.astype(np.float64) - wanted)
    # Rounded once to the file's dtype.
    return bool((error <= 2.0 * np.finfo(np.float32).eps * np.abs(wanted)).all()) or np.array_equal(
        wanted.astype(own.array.dtype), written.array
    )
