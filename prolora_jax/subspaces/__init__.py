"""Singular vectors of base weights, computed and kept."""
