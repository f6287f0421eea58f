"""Adapters on Flax nets that run."""
