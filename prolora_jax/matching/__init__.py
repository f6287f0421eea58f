"""Which source module feeds which target module."""
