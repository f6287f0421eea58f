"""Adapter files and folders."""
