"""What a run leaves behind: reports, the manifest of a folder.

lock.py: The lock of an output folder: one run writes there at a time.
protected.py: Files that no output may replace: what a run reads.
catalog_files.py: Files of a run over a catalog: stamps, hashes, copies, leftovers.
manifest.py: The manifest of an output folder: `OUT/manifest.sqlite`.
reports.py: The report beside an output: `style.safetensors` -> `style.safetensors.report.json`.
work_folder.py: What a long job has done so far, so that one that was killed can go on.
traces.py: The traceback of an internal error, in a file of its own.
"""
