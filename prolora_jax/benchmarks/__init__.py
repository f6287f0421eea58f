"""What the package costs, measured beside baselines in the same run.

anonymous_memory.py: The most memory that this process holds for some time, mapped files left out.
baselines.py: The method in PyTorch, as one would write it there: measured beside ours, used for
    nothing.
cores.py: Cores and messages of a measuring process; standard library only: `pin` comes before
    NumPy.
diffusers_config.py: `config.json` of a made UNet of SDXL's family, as diffusers writes it.
environment.py: What a measured number depends on, as a dict for JSON.
isolated.py: One measurement in a process of its own: one core, one thread, environment set before
    imports.
made_models.py: A made pair of base models of real size, the target a noisy copy of known parts of
    the source.
made_catalog.py: A made catalog of adapters: several formats, ranks, dtypes, scales and choices of
    layers.
mixed_catalog.py: A made catalog as people have them: every format that is read, broken files,
    copies, odd names.
peaks.py: What this process could do at best, measured in the same run as what it did.
targets.py: What a benchmark aims at, and whether it was met. A figure that is not a number meets
    nothing.
timing.py: How times are taken: process CPU time, contestants in turn, every sample kept.
bases.py: `prolora benchmark bases`: bases of weights, ours against `torch.linalg.svd`.
catalog.py: `prolora benchmark catalog`: files to files, and what of it is not arithmetic.
made_updates.py: One module of a made pair and the updates of many adapters on it, for whoever is
    measured.
recompression.py: Recompression alone: from the parts of an arm to factors of a rank (see
    `migrate`).
migrate.py: `prolora benchmark migrate`: migration of updates, ours against three baselines in
    PyTorch.

Never: files.
May import: errors, layout, engines, method, architectures, adapters, matching, plans, io,
    subspaces, migration, catalog.
"""
