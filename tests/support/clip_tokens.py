"""A CLIP tokenizer with some merges, in the files that the published pipelines have."""

import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

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
PIECES = ["in", "k", "The", " ", "!", "'s", "1", "é", "e\u0301", "墨", "\t", "\u200b", "🎨", "..."]


def write_published(folder: Path, *, pad: str = "<|endoftext|>") -> Path:
    """The four files, as transformers wrote them until 5."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in MERGES] + ["<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    special |= {"unk_token": "<|endoftext|>", "pad_token": pad}
    numbers = {token: i for i, token in enumerate(tokens)}
    kept = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {
            str(numbers[token]): {"content": token, "normalized": token.startswith("<")} | kept
            for token in sorted({*special.values()}, key=numbers.__getitem__)
        },
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(special | config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder
