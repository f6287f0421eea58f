"""Nets that make pictures, in Flax (linen); nothing above knows them but `evaluation` and `cli`."""
