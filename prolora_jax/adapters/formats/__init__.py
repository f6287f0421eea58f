"""Adapter files as key conventions: a dict of tensors to an `Adapter` and back, no disk."""
