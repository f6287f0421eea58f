"""Memory of this process that no file backs: pages of mapped files can be taken back."""

from pathlib import Path


def anonymous_bytes() -> int | None:
    """What the process holds now; None where the system does not say it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return 1024 * int(found[0]) if found else None
