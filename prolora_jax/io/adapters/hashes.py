"""The hashes by which web sites and user interfaces know an adapter file (formats.md 5.1)."""

import hashlib
from collections.abc import Collection, Mapping

import numpy as np
from safetensors.numpy import save

_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000


def file_hashes(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], wanted: Collection[str]
) -> dict[str, str]:
    """The hashes of a safetensors file with these tensors.

    Args:
        tensors: C-contiguous arrays by key.
        metadata: header strings of the file.
        wanted: which of `formats.header.HASHES` to give.

    Returns:
        `sshs_model_hash` and `modelspec.hash_sha256`: SHA-256 of everything behind the header.
        `sshs_legacy_hash`: the first 8 digits of the SHA-256 of 64 KiB from 1 MiB on, in the file
        as it would be with its `ss_` strings only, as kohya's trainer defines it. Files shorter
        than that have the hash of nothing.
    """
    if not wanted:
        return {}
    trained = {key: text for key, text in metadata.items() if key.startswith("ss_")}
    content = memoryview(save(dict(tensors), metadata=trained))
    body = content[8 + int.from_bytes(content[:8], "little") :]
    digest = hashlib.sha256(body).hexdigest()
    window = content[_LEGACY_START : _LEGACY_START + _LEGACY_LENGTH]
    found = {
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(window).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{digest}",
    }
    return {key: text for key, text in found.items() if key in wanted}
