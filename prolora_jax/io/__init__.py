"""Disks: every file of the package is opened here.

atomic.py: Files appear whole or not at all.
guarded.py: The one way to open what a user gave: regular files, within a budget of bytes.
file_state.py: Which file is at a path, and whether it can have been changed since it was read.
containers/: Files that hold tensors, whatever the tensors are.
adapters/: Adapters on disk: files, folders, and what stands beside them.
base_models/: Base models on disk and from the hub.
documents.py: Small documents: YAML that people write, JSON of programs, both with budgets.
judging/: What judging pictures reads and keeps.
outputs/: What a run leaves behind: reports, the manifest of a folder.
patient_lock.py: A lock that another process of this host may hold for long.
places/: Places where files lie: local folders and object stores, behind five verbs.
process_memory.py: Memory of this process: what no file backs, and the most that was resident.
system_texts.py: Texts that every Debian system has, for the laboratory's language models.
stores/: Singular vectors and operators, kept between runs.

Never: jax.
May import: errors, layout, architectures, adapters, method, plans.
"""
