"""Singular vectors and operators, kept between runs.

store_files.py: The files of a store: when they were last used.
seals.py: What a stored file says of itself, and whether it is so.
operator_folder.py: Operators of pairs of weights on disk, one file each.
basis_store.py: Singular vectors on disk: one safetensors file per weight.
"""
