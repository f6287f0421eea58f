"""Singular vectors and operators, kept between runs.

store_files.py: The files of a store: when they were last used, and how those that are not needed
    go.
operator_folder.py: Operators of pairs of weights on disk: one safetensors file each, written
    whole or not at all.
basis_store.py: Bases on disk: one safetensors file per weight, the weight's fingerprint in the
    name.
"""
