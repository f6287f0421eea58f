"""Outputs held against their receipts; receipts set back, so that the next run does them again."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from prolora_jax.catalog.fleet.publishing import stored_hash
from prolora_jax.catalog.fleet.receipts import Filed, Known, file_receipt, read_receipts
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal
from prolora_jax.io.places.place import FilePlace
from prolora_jax.plans.catalog_record import FINISHED, failed_record


@dataclass(frozen=True)
class FleetCheck:
    """What a check of a place found.

    Attributes:
        outputs: that there should be.
        whole: of them, as they were written, with their reports.
        problems: what is wrong, by input path.
    """

    outputs: int
    whole: int
    problems: dict[str, str]


def check_outputs(out: FilePlace, progress: Progress | None = None) -> FleetCheck:
    """Read every output and compare it with its receipt.

    Args:
        out: place of the outputs.
        progress: called with ("verify", done, total).

    Raises:
        UsageError: a receipt cannot be read.
        OutputError: the place does not answer.
    """
    known = [k.receipt for k in read_receipts(out).values()]
    finished = [receipt for receipt in known if receipt.record.state in FINISHED]
    problems: dict[str, str] = {}
    for place, receipt in enumerate(finished, 1):
        for key, filed in sorted(receipt.files.items()):
            found = stored_hash(out, key)
            if found != filed.hash:
                what = "is not there" if found is None else "has other content"
                problems[receipt.record.input] = (
                    f"{out.shown}/{key}: {what}; expected what its receipt says; use prolora fleet "
                    "retry --damaged, then run again"
                )
        if progress is not None:
            progress("verify", place, len(finished))
    return FleetCheck(len(finished), len(finished) - len(problems), problems)


def retry_quarantined(out: FilePlace) -> list[str]:
    """Have the next run try again what has ended workers; returns the names.

    Args:
        out: place of the outputs.

    Raises:
        UsageError: a receipt cannot be read.
        OutputError: the place does not answer.
    """
    return _set_back(out, [k for k in read_receipts(out).values() if k.receipt.quarantined])


def retry_damaged(out: FilePlace, progress: Progress | None = None) -> list[str]:
    """Have the next run make the outputs again that are not as they were written.

    Args:
        out: place of the outputs.
        progress: called with ("verify", done, total).

    Returns:
        Names of the inputs.

    Raises:
        UsageError: a receipt cannot be read.
        OutputError: the place does not answer.
    """
    problems = check_outputs(out, progress).problems
    return _set_back(out, [k for n, k in read_receipts(out).items() if n in problems])


def _set_back(out: FilePlace, known: Iterable[Known]) -> list[str]:
    names = []
    for one in known:
        receipt, files = one.receipt, dict[str, Filed]()
        for key, filed in receipt.files.items():
            head = out.head(key)
            if head is not None:  # whatever is there now may be replaced
                files[key] = filed._replace(etag=head.etag)
        message = f"{receipt.record.input}: is to be done again; run the same command"
        changed = replace(
            receipt,
            record=failed_record(receipt.record, Refusal.CHANGED, message),
            files=files,
            quarantined=False,
            round=receipt.round + 1,
        )
        if file_receipt(out, changed, one):
            names.append(receipt.record.input)
    return names
