"""Thousands of adapter files: scanned, migrated, checked, shown.

licences.py: Whether what people write beside an adapter forbids derivatives; a migrated adapter
    is one.
license_check.py: The licence of an adapter, wherever it stands: its header, the files beside it.
page/: The page about a catalog: one HTML file, nothing from the network.
scan.py: What would become of each file of a catalog, from headers: verdicts before any work.
run.py: One run over the scanned files of a catalog: what is unfinished, done, and noted.
catalog.py: A catalog: scanned, what is unfinished migrated, every file accounted for in the
    manifest.
verify.py: A migrated catalog, checked: every output is as it was written, and a sample is
    recomputed.

Never: jax, files.
May import: errors, layout, engines, method, architectures, adapters, matching, plans, io,
    subspaces, migration, verification.
"""
