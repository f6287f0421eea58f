"""The hashes by which web sites and user interfaces know an adapter file (formats.md 5.1)."""

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256

from prolora_jax.io.containers.streamed import header_bytes

_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000


def file_hashes(
    entries: str,
    body: Sequence[bytes | memoryview],
    metadata: Mapping[str, str],
    wanted: Collection[str],
) -> dict[str, str]:
    """The hashes of a safetensors file with these tensors.

    Args:
        entries: what its header says of them (`streamed.entries_text`).
        body: their bytes, in the order of the file.
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
    whole, window = sha256(), sha256()
    place = 0
    for number, piece in enumerate((header_bytes(entries, trained), *body)):
        view = memoryview(piece).cast("B")
        if number:
            whole.update(view)
        first, last = (
            min(max(edge - place, 0), len(view))
            for edge in (_LEGACY_START, _LEGACY_START + _LEGACY_LENGTH)
        )
        window.update(view[first:last])
        place += len(view)
    found = {
        "sshs_model_hash": whole.hexdigest(),
        "sshs_legacy_hash": window.hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{whole.hexdigest()}",
    }
    return {key: text for key, text in found.items() if key in wanted}
