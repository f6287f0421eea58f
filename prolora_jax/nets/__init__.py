"""Nets that make pictures, in Flax (linen)."""
