"""Measures: arrays in, one number out.

shares.py: How much of an adapter arrived: share of the loss gap.
"""
