"""Noise, samplers and their loop."""
