"""Receipts of a whole run in one Parquet file.

A row is a receipt: its JSON, which is what is read again, and the columns that people ask for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.plans.catalog_record import CatalogRecord

_PLAIN = tuple(f.name for f in fields(CatalogRecord) if f.name not in ("skipped", "flags"))
_ROWS = 4096
_OWN = ("receipt_key", "receipt_etag", "receipt")


def table(told: Iterable[tuple[str, str, bytes, CatalogRecord]]) -> bytes:
    """A Parquet file, the same for the same receipts.

    Args:
        told: key and etag of the object, JSON of the receipt, and its record.

    Raises:
        UsageError: pyarrow is missing.
    """
    pyarrow, parquet = _libraries("a table of receipts")
    rows = list(told)
    columns = {name: [row[place] for row in rows] for place, name in enumerate(_OWN)}
    columns |= {name: [getattr(row[3], name) for row in rows] for name in _PLAIN}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def rows(text: bytes, shown: str) -> Iterator[tuple[str, str, bytes]]:
    """Key, etag and JSON of each receipt of a Parquet file.

    Args:
        text: of the file.
        shown: where it is.

    Yields:
        Some thousands are held at a time.

    Raises:
        UsageError: pyarrow is missing, or this is no such file.
    """
    pyarrow, parquet = _libraries(shown)
    try:
        found = parquet.ParquetFile(pyarrow.BufferReader(text))
        for batch in found.iter_batches(_ROWS, columns=list(_OWN)):
            yield from zip(*(batch.column(name).to_pylist() for name in _OWN), strict=True)
    except (pyarrow.ArrowException, KeyError) as failure:
        raise UsageError(
            f"{shown}: cannot be read as a table of receipts ({failure}); expected what `prolora "
            "fleet compact` writes; remove it: the receipts themselves are there",
            code=Refusal.BAD_REPORT,
        ) from None


def _libraries(what: str):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            f"{what}: needs pyarrow; expected it installed; use pip install 'prolora_jax[fleet]'",
            code=Refusal.MISSING_LIBRARY,
        ) from None
    return pyarrow, parquet
