"""Texts that every Debian system has: what the laboratory's language models are trained on."""

import gzip
import sysconfig
import zlib
from pathlib import Path
from typing import Literal, get_args

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.guarded import is_regular, read_small

SystemText = Literal["code", "changelogs", "licences"]
"""Python's own sources, what Debian's packagers have changed, and copyright files."""

MOST_FILES = 800
_DOCUMENTS = Path("/usr/share/doc")
_LARGEST = 2**24


def system_texts(kind: SystemText) -> dict[str, str]:
    """Texts of a kind, by the name of their file, sorted.

    Args:
        kind: which.

    Returns:
        At most `MOST_FILES`; bytes that are no UTF-8 are left out.

    Raises:
        UsageError: the system has none.
    """
    places = {
        "code": (Path(sysconfig.get_path("stdlib")), "*.py"),
        "changelogs": (_DOCUMENTS, "*/changelog.Debian.gz"),
        "licences": (_DOCUMENTS, "*/copyright"),
    }
    folder, pattern = places[kind]
    files = [file for file in sorted(folder.glob(pattern)) if is_regular(file)]
    texts = {str(file.relative_to(folder)): _text(file) for file in files[:MOST_FILES]}
    if not texts:
        raise UsageError(
            f"{folder}: found no {pattern}; expected the texts of a Debian system, of the kinds "
            f"{', '.join(get_args(SystemText))}; run where they are installed",
            code=Refusal.MISSING_FILE,
        )
    return texts


def _text(file: Path) -> str:
    content = read_small(file, _LARGEST)
    if file.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return ""
    return content.decode("utf-8", "ignore")
