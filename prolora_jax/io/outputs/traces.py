"""The traceback of an internal error, in a file of its own for the person who reports it."""

import tempfile
from pathlib import Path


def write_trace(text: str) -> Path | None:
    """Write a traceback to a new file in the folder for temporary files.

    The file is made anew and is readable by its owner alone, so that nothing that lies in a
    shared folder is followed or replaced.

    Args:
        text: the traceback.

    Returns:
        The file; None when it cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            encoding="utf-8",
            errors="backslashreplace",
            prefix="prolora-trace-",
            suffix=".txt",
            delete=False,
        ) as file:
            file.write(text)
    except OSError:
        return None
    return Path(file.name)
