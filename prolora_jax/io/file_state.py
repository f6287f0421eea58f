"""Which file is at a path, and whether it can have been changed since it was read.

A file that is rewritten, in place or not, gets another time of change (`ctime`), which no program
can set, and so does one whose times are set back. Two writes within one tick of the file system's
clock get the same time, though, and a page that a program has mapped for writing is stamped when it
first gets dirty, not at each write. So what was read from a file says nothing of it later unless
the file had been left alone for a while before it was read: `is_settled`.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

SETTLED_SECONDS = 60.0
"""How long a file was left alone before what is read from it may be remembered.

Clocks of file systems tick once in 2 s at worst (FAT); systems write dirty pages back, and stamp
the next write again, after about 30 s (Linux).
"""


class FileState(NamedTuple):
    """A file as it was at some moment.

    Attributes:
        path: absolute, without links.
        inode: which file is there.
        size: in bytes.
        modified: time of the last write, in nanoseconds.
        changed: time of the last change of content, name, times or permissions.
    """

    path: str
    inode: int
    size: int
    modified: int
    changed: int

    @staticmethod
    def of(path: Path, status: os.stat_result) -> "FileState":
        """The state of a file that was looked at under this path."""
        facts = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        return FileState(os.path.realpath(path), *facts)

    @staticmethod
    def now(path: str | Path) -> "FileState | None":
        """The state of the file at a path; None where there is none."""
        try:
            return FileState.of(Path(path), os.stat(path))
        except OSError:
            return None

    def is_settled(self, at: float | None = None) -> bool:
        """Whether the file had been left alone for long enough, at a time (now when None).

        Times that lie in the future say nothing: no.
        """
        moment = time.time() if at is None else at
        return moment - max(self.modified, self.changed) / 1e9 > SETTLED_SECONDS
