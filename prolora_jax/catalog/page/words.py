"""Reasons of refusals in plain words, and what a person may decide about them."""

REASONS = {
    "missing-file": "it was gone, or could not be opened",
    "not-safetensors": "not a safetensors file",
    "pickle-refused": "a pickle, which may run code when it is opened",
    "truncated": "cut off: bytes are missing",
    "file-too-large": "larger than any adapter",
    "header-too-large": "its header is larger than any adapter's",
    "duplicate-key": "a name occurs twice in it",
    "unsupported-dtype": "numbers of a kind that is not read",
    "non-finite": "numbers that are not finite (NaN, infinity)",
    "not-an-adapter": "no adapter",
    "unsupported-algorithm": "another kind than plain LoRA (LoHa, LoKr, DoRA, ...)",
    "unknown-keys": "names that no known format has",
    "incomplete-pair": "half of a pair of factors is missing",
    "duplicate-module": "a layer occurs twice with different numbers",
    "alpha-zero": "an alpha of 0, which programs read in two ways",
    "shape-mismatch": "made for layers of another shape",
    "unmatched-modules": "has layers that the source does not have",
    "needs-source-weights": "depends on weights of its base model that are not at hand",
    "wrong-base": "made for another base model than the source",
    "unrelated-models": "the two base models have nothing in common but names or shapes",
    "no-matching-module": "no layer of it can move to the target",
    "unsupported-config": "a configuration that is not read",
    "output-exists": "somebody else's file stands at its place",
    "cannot-write": "its output could not be written",
    "archive": "an archive; unpack it first",
    "bad-name": "a name that is not UTF-8",
    "changed-while-read": "it changed while it was read",
    "license-forbids": "its licence forbids derivatives",
    "worker-ended": "a worker process was ended from outside",
    "internal-error": "an error in the program",
}
"""By stable code, as the end of "refused: ..."."""

DECISIONS = {
    "wrong-base": "If you know better: <code>--assume-base</code>.",
    "alpha-zero": "Say what it means: <code>--alpha-zero rank</code> or <code>zero</code>.",
    "pickle-refused": "If you trust them: <code>--allow-pickle</code>.",
    "license-forbids": "If you have leave: <code>--ignore-license</code>.",
    "output-exists": "Replace them: <code>--overwrite</code>; or name another folder.",
    "cannot-write": "Make room, then <code>--retry-failed</code>.",
    "changed-while-read": "Run again with <code>--retry-failed</code>.",
    "missing-file": "Run again with <code>--retry-failed</code>.",
    "internal-error": "Please report them; <code>--retry-failed</code> tries again.",
}
"""What a person can do about a reason, by its code; as HTML. Other reasons lie in the file."""

LOOKS = {
    "weak-match": "layers whose nearest source layer is hardly nearer than others",
    "ambiguous-base": "they fit several base models, and the source was believed",
    "no adapter_config.json": "no configuration beside them: their strength was taken as 1",
    "partial: ": "biases, norms or whole layers of theirs were left behind",
    "in-parts: ": "fused layers of theirs were to move whole, and moved in parts",
    "fused-ranks: ": "their fused layers have the ranks of several parts together",
    "sidecar-exists": "sidecars that were not replaced",
}
"""What to know about files that moved, by the beginning of a flag."""
