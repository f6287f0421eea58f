"""The header strings of a file: where it came from, as its report, its input and both bases say."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import PurePath
from typing import Any

import msgspec

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.header_strings import (
    HASHES,
    PROVENANCE,
    for_target,
    stripped,
    trained_with,
)
from prolora_jax.adapters.formats.keys import said_in
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.report import MigrationReport
from prolora_jax.verification.weights import Weights

FORMAT = "format"


def used_weights(model: Weights, paths: Sequence[str]) -> str:
    """What identifies a base model as far as it was used: a hash over the weights of `paths`."""
    known = [path for path in sorted(paths) if path in model.spec.modules]
    digests = {path: model.fingerprint(path) for path in known}
    return sha256(msgspec.json.encode(digests)).hexdigest()


def provenance_problems(
    output: Adapter,
    told: MigrationReport,
    fingerprints: Mapping[str, str],
    counts: Mapping[str, int],
    target: BaseModelSpec,
) -> list[str]:
    """What the entry `prolora` of a header says, against what is so.

    Args:
        output: the file.
        told: its report.
        fingerprints: of `input`, `source` and `target`, as they are.
        counts: of modules by what became of them, as replanned.
        target: modules of the target.
    """
    text = output.metadata.get(PROVENANCE)
    if text is None:
        return [f"header: found no entry `{PROVENANCE}`, which every output has"]
    try:
        facts = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        return [f"header: its entry `{PROVENANCE}` is no JSON object"]
    wanted = {
        "version": told.prolora_version,
        "options": said_options(told.options),
        **fingerprints,
        "architecture": target.architecture,
        "counts": dict(counts),
    }
    if told.refined is not None:
        wanted["refined"] = told.refined.facts
    return [
        f"header: its entry `{PROVENANCE}` has {name} {facts.get(name, 'missing')}; "
        f"expected {wanted.get(name, 'no such field')}"
        for name in sorted(facts.keys() | wanted.keys())
        if name not in facts or name not in wanted or facts[name] != wanted[name]
    ]


def said_options(options: MigrationOptions) -> dict[str, Any]:
    """Options as a header has them: the method, and what differs from the defaults."""
    said = options.changed() | {"method": options.method}
    return msgspec.json.decode(msgspec.json.encode(said))  # lists for tuples, as a header has them


def string_problems(
    output: Adapter, before: Adapter, told: MigrationReport, target: BaseModelSpec
) -> tuple[list[str], list[str]]:
    """Every other header string, against those of the input.

    Args:
        output: the file.
        before: its input.
        told: its report; names the input, as header strings do.
        target: the base model that the file is for.

    Returns:
        Problems, and what could not be checked.
    """
    title = before.metadata.get("modelspec.title") or PurePath(told.input.location).stem
    wanted = for_target(said_in(before.metadata), target, merged_from=[title])
    asked = {**wanted, **trained_with(replace(output, metadata=wanted))}
    said = said_in(output.metadata).items()
    found = {key: text for key, text in said if key not in (PROVENANCE, HEADER_KEY)}
    without = {k for k in stripped(wanted) if k != PROVENANCE}
    # `--strip-metadata` is no option of a migration: both are right, but nothing in between.
    needed = without if found.keys() <= without | {FORMAT} else wanted.keys() - HASHES
    problems, open_ = [], []
    for key, text in found.items():
        if key in HASHES & before.metadata.keys():
            open_.append(f"header string {key}: a hash of the file's bytes")
        elif key == FORMAT:
            if text not in ("pt", wanted.get(FORMAT)):
                problems.append(f"header: {key} is {text}; expected pt")
        elif key not in wanted:
            problems.append(f"header: {key} is in neither the input nor what a migration adds")
        elif text not in (asked[key], wanted[key]):
            problems.append(f"header: {key} is {_short(text)}; expected {_short(asked[key])}")
    for key in sorted(needed - found.keys() - {FORMAT}):
        problems.append(f"header: {key} of the input is missing")
    if FORMAT not in found:
        open_.append("header string format: absent, which not every reader takes")
    if needed != wanted.keys() - HASHES:
        left_out = sorted(wanted.keys() - without)
        open_.append(f"header strings left out, as --strip-metadata does: {', '.join(left_out)}")
    return problems, open_


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
