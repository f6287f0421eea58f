"""Measures: arrays in, one number out.

preprocessing.py: Pictures as each encoder was shown them in training.
shares.py: How much of an adapter arrived: share of the loss gap.
"""
