"""What became of each input: written once, read together.

A receipt is the commit of a file: where one is, its output and report are, and are what it says.
Where none is, the file is done (again), which harms nothing. Above `MANY` files there is one object
for each chunk of inputs, which S3 would else be asked for a hundred thousand times.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, NamedTuple

import msgspec

from prolora_jax.catalog.fleet import tables
from prolora_jax.catalog.fleet.inputs import FleetInput
from prolora_jax.catalog.fleet.job import OWN
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.places.place import FilePlace, read_listed, read_whole
from prolora_jax.plans.catalog_record import FINISHED, SETTLED, CatalogRecord

FOLDER, TABLES = f"{OWN}/receipts", f"{OWN}/manifest"
MANY = 20_000
"""Files above which a receipt is for a chunk."""

_LARGEST, _LARGEST_TABLE = 2**26, 2**31
_READ_AT_ONCE, _READ_AHEAD = 16, 256

FileState = Literal["done", "refused", "failed", "quarantined"]
"""`done`: it has an output, or needs none; `failed`: something broke, and the next run tries it
again; `quarantined`: it has ended workers, and is tried again only when that is asked for."""


class Filed(NamedTuple):
    """A file of an output, as it was written.

    Attributes:
        hash: SHA-256 of its bytes.
        etag: of the place.
    """

    hash: str
    etag: str


@dataclass(frozen=True)
class Receipt:
    """What became of one input.

    Attributes:
        record: as in the manifest of one machine.
        etag: that the input had.
        plan: digest of options and base weights; None when it came to no plan.
        files: of the output and its report, by key; of the last ones where it has none now.
        quarantined: whether it has ended workers.
        round: rises with every receipt of an input; the highest holds.
    """

    record: CatalogRecord
    etag: str
    plan: str | None = None
    files: dict[str, Filed] = field(default_factory=dict)
    quarantined: bool = False
    round: int = 0

    @property
    def state(self) -> FileState:
        """What became of it, in a word."""
        if self.quarantined:
            return "quarantined"
        if self.record.state in SETTLED:
            return "done"
        return "refused" if self.record.state == "refused" else "failed"

    def settles(self, one: FleetInput) -> bool:
        """Whether nothing is left to be done for an input."""
        return self.state != "failed" and self.etag == one.etag


class Known(NamedTuple):
    """A receipt and where it stands.

    Attributes:
        receipt: of an input.
        key: of the object; it may hold others, too.
        etag: of the object.
    """

    receipt: Receipt
    key: str
    etag: str


def key_of(name: str) -> str:
    """Where the receipt of an input stands, spread over 256 folders."""
    digest = sha256(name.encode()).hexdigest()
    return f"{FOLDER}/{digest[:2]}/{digest[:32]}.json"


def file_receipt(place: FilePlace, receipt: Receipt, before: Known | None) -> bool:
    """Write the receipt of one input.

    Args:
        place: of the outputs.
        receipt: to be written.
        before: the one that is there, as far as is known.

    Returns:
        Whether it is there now; else another worker's is.

    Raises:
        UsageError: what is there cannot be read.
        OutputError: the place does not answer.
    """
    key, text = key_of(receipt.record.input), msgspec.json.encode(receipt)
    if before is None or before.key != key:
        written = place.create(key, text, {})
    else:
        written = place.replace_if(key, text, before.etag, {})
    found = None if written.ours else read_one(place, receipt.record.input)
    if found is None or not _gives_way(found.receipt, receipt):
        return written.ours
    return place.replace_if(key, text, found.etag, {}).ours


def _gives_way(found: Receipt, new: Receipt) -> bool:
    """Whether a receipt is older, or tells of a failure where another worker has an output.

    Without one that names it an output would be nobody's, and no later one could take its place.
    """
    failed = found.state == "failed" and new.state == "done"
    return found.round < new.round or (found.round == new.round and failed)


def file_chunk(place: FilePlace, receipts: list[Receipt]) -> bool:
    """Write the receipts of a chunk as one object.

    Args:
        place: of the outputs.
        receipts: to be written; those that are there are not touched, and their rounds are lower.

    Returns:
        Whether it is there now as it was given.

    Raises:
        OutputError: the place does not answer.
    """
    facts = [(r.record.input, r.etag, r.round) for r in receipts]
    digest = sha256(msgspec.json.encode(facts)).hexdigest()
    key = f"{FOLDER}/chunks/{digest[:2]}/{digest[:32]}.json"
    return place.create(key, msgspec.json.encode(receipts), {}).ours


def read_receipts(place: FilePlace) -> dict[str, Known]:
    """All receipts of a place, by the names of their inputs, sorted.

    Args:
        place: of the outputs.

    Raises:
        UsageError: one cannot be read.
        OutputError: the place does not answer.
    """
    found: dict[str, Known] = {}
    for known in every_receipt(place):
        name = known.receipt.record.input
        if name not in found or known.receipt.round > found[name].receipt.round:
            found[name] = known
    return dict(sorted(found.items()))


def every_receipt(place: FilePlace) -> Iterator[Known]:
    """Every receipt, those that later ones replace in other objects, too, in no order.

    Args:
        place: of the outputs.

    Yields:
        One at a time: there may be a hundred thousand.

    Raises:
        UsageError: one cannot be read.
        OutputError: the place does not answer.
    """
    left = {one.key: one for one in place.list(FOLDER)}
    read = dict[str, str]()
    for known in _compacted(place):
        # A table is older than some of what it was made from.
        if known.key in left and left[known.key].etag == known.etag:
            read[known.key] = known.etag
            yield known
    missing = [one for one in left.values() if one.key not in read]
    with ThreadPoolExecutor(_READ_AT_ONCE, "receipts") as threads:
        for start in range(0, len(missing), _READ_AHEAD):
            some = missing[start : start + _READ_AHEAD]
            texts = threads.map(lambda one: read_listed(place, one, _LARGEST), some)
            for one, (text, etag) in zip(some, texts, strict=True):
                yield from _decoded(place, one.key, text, etag)


def read_one(place: FilePlace, name: str) -> Known | None:
    """The receipt of one input that has an object of its own; None when it has none.

    Args:
        place: of the outputs.
        name: of the input.

    Raises:
        UsageError: it cannot be read.
        OutputError: the place does not answer.
    """
    key = key_of(name)
    try:
        text, etag = read_whole(place, key, _LARGEST)
    except FileNotFoundError:
        return None
    (known,) = _decoded(place, key, text, etag)
    return known


def _decoded(place: FilePlace, key: str, text: bytes, etag: str) -> list[Known]:
    kind = list[Receipt] if text[:1] == b"[" else Receipt
    try:
        told = msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as failure:
        raise UsageError(
            f"{place.shown}/{key}: cannot be read as a receipt ({failure}); expected what `prolora "
            "fleet run` writes; remove it: its input is done again",
            code=Refusal.BAD_REPORT,
        ) from None
    receipts = told if isinstance(told, list) else [told]
    return [Known(receipt, key, etag) for receipt in receipts]


def _compacted(place: FilePlace) -> Iterator[Known]:
    for listed in place.list(TABLES):
        text, _ = read_listed(place, listed, _LARGEST_TABLE)
        for key, etag, receipt in tables.rows(text, f"{place.shown}/{listed.key}"):
            yield Known(msgspec.json.decode(receipt, type=Receipt), key, etag)


def compact(place: FilePlace) -> int:
    """Put all receipts into one table, which is read instead of them; they stay.

    Args:
        place: of the outputs.

    Returns:
        How many receipts are in it.

    Raises:
        UsageError: a receipt cannot be read, or pyarrow is missing.
        OutputError: the place does not answer.
    """
    every = sorted(every_receipt(place), key=lambda known: (known.receipt.record.input, known.key))
    if every:
        told = [(k.key, k.etag, msgspec.json.encode(k.receipt), k.receipt.record) for k in every]
        text = tables.table(told)
        place.create(f"{TABLES}/{sha256(text).hexdigest()[:32]}.parquet", text, {})
    return len(every)


def counts(receipts: Iterable[Receipt]) -> dict[FileState, int]:
    """Numbers of receipts by state."""
    found: dict[FileState, int] = {}
    for receipt in receipts:
        found[receipt.state] = found.get(receipt.state, 0) + 1
    return found


def outputs_of(receipt: Receipt) -> list[str]:
    """Keys of the files of an output; none where there is no output."""
    return sorted(receipt.files) if receipt.record.state in FINISHED else []
