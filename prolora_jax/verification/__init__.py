"""The oracle: a dense float64 recomputation that shares no code with what it checks."""
