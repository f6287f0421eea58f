"""How long a test waits for what should come at once."""

UNTIL_HUNG = 1200.0
"""Seconds after which a process that a test has started counts as hung and is ended.

Nothing is measured by it: a machine under load, or a first import from a slow disk, may take
minutes for what takes seconds otherwise, and only a failing test waits so long.
"""
