"""What can go wrong, as types with stable codes.

A message says what is wrong, where (file, module), what was found, what was expected and what
to do. The command line prints the message alone, in one line, and leaves with `exit_code`.
"""

from enum import StrEnum


class Refusal(StrEnum):
    """Why a whole file is refused. Values are stable: reports and scripts may rely on them."""

    MISSING_FILE = "missing-file"
    NOT_SAFETENSORS = "not-safetensors"
    PICKLE = "pickle-refused"
    TRUNCATED = "truncated"
    FILE_TOO_LARGE = "file-too-large"
    HEADER_TOO_LARGE = "header-too-large"
    DUPLICATE_KEY = "duplicate-key"
    UNSUPPORTED_DTYPE = "unsupported-dtype"
    NON_FINITE = "non-finite"
    NOT_AN_ADAPTER = "not-an-adapter"
    UNSUPPORTED_ALGORITHM = "unsupported-algorithm"
    UNKNOWN_KEYS = "unknown-keys"
    INCOMPLETE_PAIR = "incomplete-pair"
    DUPLICATE_MODULE = "duplicate-module"
    ALPHA_ZERO = "alpha-zero"
    SHAPE_MISMATCH = "shape-mismatch"
    UNMATCHED_MODULES = "unmatched-modules"
    NEEDS_SOURCE_WEIGHTS = "needs-source-weights"
    WRONG_BASE = "wrong-base"
    UNRELATED = "unrelated-models"
    BAD_PLAN = "bad-plan"
    NO_MATCHING_MODULE = "no-matching-module"
    UNREADABLE_BASE = "unreadable-base"
    UNSUPPORTED_CONFIG = "unsupported-config"
    OUTPUT_EXISTS = "output-exists"
    CANNOT_WRITE = "cannot-write"
    MISSING_LIBRARY = "missing-library"
    BAD_OPTION = "bad-option"
    BAD_REPORT = "bad-report"
    ARCHIVE = "archive"
    BAD_NAME = "bad-name"
    CHANGED = "changed-while-read"
    LOCKED = "locked"
    LICENSE = "license-forbids"
    WORKER_ENDED = "worker-ended"
    INTERNAL = "internal-error"


class ProloraError(Exception):
    """Base of every error a user can cause.

    Attributes:
        code: stable reason, for reports and scripts.
        exit_code: what the command line returns.
    """

    exit_code = 1

    def __init__(self, message: str, *, code: Refusal):
        super().__init__(message)
        self.code = code

    def __reduce__(self):
        # Errors of worker processes travel by pickle, which would leave out the code.
        return _rebuild, (type(self), str(self), self.code)


def _rebuild(kind: "type[ProloraError]", message: str, code: Refusal) -> "ProloraError":
    error = kind.__new__(kind)
    ProloraError.__init__(error, message, code=code)
    return error


class AdapterRefused(ProloraError):
    """Raised when an adapter file cannot be used; other files of the same run go on."""


class UsageError(ProloraError):
    """Raised when the request itself is wrong: an option value, a missing path, existing output."""

    exit_code = 2


class OutputError(ProloraError):
    """Raised when the disk does not take an output: it is full, or may not be written to."""


class BaseModelError(ProloraError):
    """Raised when a base model cannot be read or described: no adapter can be handled."""

    exit_code = 2
