"""Thousands of adapter files: scanned, migrated, verified."""
