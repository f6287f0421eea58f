"""Subspaces and operators kept between runs."""
