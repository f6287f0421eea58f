"""What a run leaves behind: reports, the manifest of a folder.

catalog_files.py: Files of a run over a catalog: the lock, stamps and hashes, links, what killed
    runs have left.
manifest.py: The manifest of an output folder: `OUT/manifest.sqlite`, one row per file of the
    catalog.
reports.py: The report beside an output: `style.safetensors` -> `style.safetensors.report.json`.
"""
