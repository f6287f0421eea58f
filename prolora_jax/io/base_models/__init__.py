"""Base models on disk and from the hub."""
