"""A store with as many adapters and receipts as one likes, none of which lies anywhere.

Keys, sizes and etags are made when they are asked for, receipts, too: what grows with their number
is then held by who asks.
"""

import time
from collections.abc import Mapping
from copy import copy
from typing import NoReturn

import msgspec

from prolora_jax.catalog.fleet.receipts import FOLDER, MANY, Filed, Receipt, key_of
from prolora_jax.errors import OutputError, Refusal
from prolora_jax.io.places.pacing import Pace
from prolora_jax.io.places.place import Content, Head, Listed
from prolora_jax.io.places.store_place import Page, StorePlace
from prolora_jax.plans.catalog_record import CatalogRecord

OUT = "out"
"""Folder of the outputs, which nothing is written to."""

_PAGE, _CHUNK, _SIZE = 1000, 16, 46_600_000
_BYTES = 1200  # of a receipt


class MadeStore(StorePlace):
    """A catalog of made adapters, and the outputs of a run that has done some of them.

    Args:
        files: adapters.
        done: adapters with a receipt: of each alone, or above `MANY` of 16 together.
        seconds: that each answer takes.
    """

    def __init__(self, files: int, done: int = 0, seconds: float = 0.0):
        super().__init__("made://store", Pace())
        self.files, self.done, self.asked = files, done, 0
        self._seconds, self._each = seconds, _CHUNK if files > MANY else 1
        keys = [self._receipts_key(first) for first in range(0, done, self._each)]
        self._receipts = dict(zip(keys, range(0, done, self._each), strict=True))

    def name(self, index: int) -> str:
        """Path of an adapter below the store."""
        return f"{index // 1000:04}/adapter-of-a-catalog-{index:07}.safetensors"

    def outputs(self) -> "MadeStore":
        """The same store, as a place of outputs."""
        place = copy(self)
        place.shown = f"{self.shown}/{OUT}"
        return place

    def _receipts_key(self, first: int) -> str:
        key = key_of(self.name(first))
        return key if self._each == 1 else key.replace(FOLDER, f"{FOLDER}/chunks")

    def _page(self, below: str, within: str, behind: str | None) -> Page:
        self._wait()
        start = int(behind or 0)
        if below == FOLDER:
            keys = list(self._receipts)[start : start + _PAGE]
            page = [Listed(key, _BYTES * self._each, f'"{key[-36:]}"') for key in keys]
            total = len(self._receipts)
        elif below:
            return [], None
        else:
            total = self.files
            page = [self._listed(n) for n in range(start, min(start + _PAGE, total))]
        return page, str(start + _PAGE) if start + _PAGE < total else None

    def _listed(self, index: int) -> Listed:
        return Listed(self.name(index), _SIZE + index, f'"{index:032x}"')

    def _head(self, key: str) -> Head | None:
        self._wait()
        first = self._receipts.get(key)
        return None if first is None else Head(_BYTES * self._each, f'"{key[-36:]}"', {})

    def _read(self, key: str, start: int, length: int, etag: str | None) -> bytes:
        self._wait()
        if key not in self._receipts:
            raise FileNotFoundError(key)
        return self._text(self._receipts[key])[start : start + length]

    def _text(self, first: int) -> bytes:
        receipts = [self._receipt(n) for n in range(first, min(first + self._each, self.done))]
        text = msgspec.json.encode(receipts if self._each > 1 else receipts[0])
        return text.ljust(_BYTES * self._each)

    def _receipt(self, index: int) -> Receipt:
        name, hashed = self.name(index), f"{index:064x}"
        record = CatalogRecord(
            *(name, name, "partial", "migrated", None, None, "kohya", 722, 644, {"gate": 78}),
            *(1.5, 1.25, 1.125, 0.25, 0.75, _SIZE + index, _SIZE // 2),
            input_hash=hashed,
            output_hash=hashed,
            seconds=0.5,
        )
        files = {name: Filed(hashed, f'"{index:032x}"')}
        files[f"{name}.report.json"] = Filed(hashed[::-1], f'"{index:032x}"'[::-1])
        return Receipt(record, f'"{index:032x}"', hashed[:32], files)

    def _write(self, key: str, content: Content, tags: Mapping[str, str], known: str) -> NoReturn:
        raise OutputError(f"{self.shown}: takes nothing", code=Refusal.CANNOT_WRITE)

    def _wait(self) -> None:
        self.asked += 1
        time.sleep(self._seconds)
