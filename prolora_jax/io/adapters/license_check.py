"""The licence of an adapter, wherever it stands: its header, the files beside it."""

from collections.abc import Mapping
from pathlib import Path

from prolora_jax.adapters.licences import forbidding_field
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.sidecars import Folders, documents


def license_problem(path: Path, header: Mapping[str, str], folders: Folders) -> str | None:
    """Why an adapter may not be changed; None when nothing says so.

    Args:
        path: the adapter, file or folder.
        header: its header strings.
        folders: where files beside it are looked up.

    Returns:
        A message that names the file and the field.
    """
    found = [(path, forbidding_field(header))]
    found += [(at, forbidding_field(held)) for at, held in documents(folders.of(path))]
    for place, field in found:
        if field is not None:
            return (
                f"{path}: found {field} in {place.name}, which forbids derivatives, and a migrated "
                "adapter is one; expected a licence that allows them; ask its author, or say "
                "--ignore-license if you may"
            )
    return None


def require_license(path: Path, header: Mapping[str, str]) -> None:
    """Refuse one adapter whose licence forbids derivatives.

    Raises:
        AdapterRefused: it does.
    """
    problem = license_problem(path, header, Folders())
    if problem is not None:
        raise AdapterRefused(problem, code=Refusal.LICENSE)
