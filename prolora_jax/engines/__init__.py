"""Who does independent tasks, here or elsewhere."""
