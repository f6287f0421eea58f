"""Numbers that say what a migration is worth."""
