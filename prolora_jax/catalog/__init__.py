"""Thousands of adapter files: scanned, migrated, checked, shown.

fleet/: A catalog by many workers, on one host or on many.
page/: The page about a catalog: one HTML file, nothing from the network.
outlook.py: What would become of all files that have one table of tensors.
scan.py: What would become of each file of a catalog, from headers: verdicts before any work.
run.py: One run over the scanned files of a catalog: what is unfinished, done, and noted.
catalog.py: A catalog: scanned, what is unfinished migrated.
refined.py: Adapters refined to files, one or a folder: what a pair's adapters share is made once.
verify.py: A migrated catalog, checked: every output is as it was written.

Never: jax, files.
May import: anything but nets, evaluation, benchmarks, cli.
"""
