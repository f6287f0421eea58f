"""The index of a checkpoint in several files, believed as far as it fits them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.documents import BadDocument, read_json_document
from prolora_jax.io.guarded import is_regular

_LONGEST_NAME = 255
"""Bytes of a file's name, on every file system in use."""


@dataclass(frozen=True)
class Shards:
    """Files that hold one checkpoint between them.

    Attributes:
        files: in the order of their names.
        promised: name of the file by tensor, where an index says it.
        index: that index, for messages; None of a single file.
    """

    files: tuple[Path, ...]
    promised: Mapping[str, str] = field(default_factory=dict)
    index: Path | None = None

    def taken(self, held: Mapping[Path, Iterable[str]]) -> dict[Path, list[str]]:
        """The tensors to take from each file.

        A tensor comes from the file that the index names, whatever other files hold; one that the
        index does not know comes from the file that it is in, as other readers have it.

        Args:
            held: names of the tensors in each of `files`.

        Raises:
            BaseModelError: the index promises tensors that are not there, or two files hold one
                that it does not know.
        """
        taken = {
            file: [key for key in keys if self.promised.get(key, file.name) == file.name]
            for file, keys in held.items()
        }
        counts = Counter(key for keys in taken.values() for key in keys)
        missing = sorted(self.promised.keys() - counts.keys())
        if missing:
            raise self._bad(
                f"{len(missing)} of {len(self.promised)} tensors are not in the shards that it "
                f"names, first {missing[0][:100]} in {self.promised[missing[0]]}"
            )
        twice = sorted(key for key, count in counts.items() if count > 1)
        if twice:
            raise self._bad(f"found {twice[0][:100]}, which it does not name, in two shards")
        return taken

    def _bad(self, found: str) -> BaseModelError:
        return BaseModelError(
            f"{self.index}: {found}; expected the index of these very files; fetch the model again",
            code=Refusal.UNREADABLE_BASE,
        )


def read_index(index: Path) -> Shards:
    """The shards of a checkpoint.

    Args:
        index: a `*.safetensors.index.json`.

    Raises:
        BaseModelError: it is no index, names files outside of its folder, or some are missing.
    """
    try:
        document = read_json_document(index)
        promised = document["weight_map"] if isinstance(document, dict) else None
        found = "found no weight_map of names"
    except (BadDocument, KeyError) as failure:
        promised, found = None, f"found no weight_map ({failure})"
    if (
        not isinstance(promised, dict)
        or not promised
        or not all(isinstance(name, str) for name in promised.values())
    ):
        raise BaseModelError(
            f"{index}: {found}, so no readable weight_map; expected the index of a sharded "
            f"checkpoint; fetch it again",
            code=Refusal.UNREADABLE_BASE,
        )
    names = sorted(set(promised.values()))
    for name in names:
        _require_file_name(index, name)
    missing = [name for name in names if not is_regular(index.parent / name)]
    if missing:
        raise BaseModelError(
            f"{index}: {len(missing)} of {len(names)} shards are missing, first {missing[0]}; "
            f"fetch them",
            code=Refusal.MISSING_FILE,
        )
    return Shards(tuple(index.parent / name for name in names), promised, index)


def _require_file_name(index: Path, name: str) -> None:
    if (
        name != Path(name).name
        or name in {"", ".", ".."}
        or "\\" in name
        or not name.isprintable()
        or len(name.encode(errors="replace")) > _LONGEST_NAME
    ):
        raise BaseModelError(
            f"{index}: found a shard named {name[:100]!r}; expected the name of a file in the same "
            f"folder; fetch the index again",
            code=Refusal.UNREADABLE_BASE,
        )
