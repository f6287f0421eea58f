"""Singular vectors and operators, kept between runs.

store_files.py: The files of a store: when they were last used.
in_use.py: What a running process uses of a store, so that no other process removes it.
store_address.py: Where a store lies: a local folder, or one that is this host's copy of a place.
shared_files.py: The part of a store that many hosts have in common: the loser reads the winner's.
seals.py: What a stored file says of itself, and whether it is so.
operator_folder.py: Operators of pairs of weights on disk, one file each.
known_weights.py: Fingerprints of the weights of checkpoints that have not changed.
weight_tables.py: Tables of numbers that were computed from weights, by their fingerprints.
basis_store.py: Singular vectors on disk: one safetensors file per weight.
"""
