"""What was asked for and would do nothing is refused: nobody would see that it did nothing."""

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.plans.options import MigrationOptions

READING = frozenset({"assume_base", "alpha_zero", "factor_rank"})
"""Options of a migration that say how an adapter is read, also where nothing is moved."""


def refuse_idle(option: str, idle: object, beside: str) -> None:
    """Refuse an option that does nothing.

    Args:
        option: as it is written.
        idle: whether it was given, and does nothing.
        beside: what it would need, or what makes it do nothing.

    Raises:
        UsageError: it does nothing.
    """
    if idle:
        raise UsageError(
            f"{option}: found it {beside}, where it does nothing; expected none there; leave it "
            f"out",
            code=Refusal.BAD_OPTION,
        )


def refuse_idle_migration(options: MigrationOptions, beside: str) -> None:
    """Refuse options of a migration where nothing is migrated.

    Args:
        options: those asked for.
        beside: why there is none.

    Raises:
        UsageError: one differs from its default, and does not say how adapters are read.
    """
    for name in options.changed():
        if name not in READING:
            refuse_idle(f"--migrate.{name.replace('_', '-')}", True, beside)
