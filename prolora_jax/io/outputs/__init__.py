"""What a run leaves behind: reports, the manifest of a folder.

catalog_files.py: The lock, stamps, hashes and links of a run over a catalog.
manifest.py: The manifest of an output folder: `OUT/manifest.sqlite`.
reports.py: The report beside an output: `style.safetensors` -> `style.safetensors.report.json`.
"""
