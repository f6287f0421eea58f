"""Memory of this process: what no file backs, and the most that was resident."""

from pathlib import Path


def anonymous_bytes() -> int | None:
    """What the process holds now without pages of mapped files, which can be taken back.

    None where the system does not say it.
    """
    return _said("RssAnon")


def largest_resident_bytes() -> int | None:
    """The most that was resident since the process started, mapped files included.

    Not `getrusage`: a new process begins there with the size of the one that started it. None
    where the system does not say it.
    """
    return _said("VmHWM")


def _said(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(found[0]) if found else None
