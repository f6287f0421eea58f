"""How long work says how far it has come."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""
