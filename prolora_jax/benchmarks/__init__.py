"""What the package costs, measured beside baselines in the same run.

anonymous_memory.py: The most memory that this process holds for some time, mapped files left out.
baselines.py: The method in PyTorch, as one would write it there: measured beside ours.
cores.py: Cores and messages of a measuring process.
diffusers_config.py: `config.json` of a made UNet of SDXL's family, as diffusers writes it.
environment.py: What a measured number depends on, as a dict for JSON.
isolated.py: One measurement in a process of its own: one core, one thread.
made_models.py: A made pair of base models of real size.
made_catalog.py: A made catalog of adapters: several formats, ranks, dtypes.
mixed_catalog.py: A made catalog as people have them: every format that is read, broken files.
peaks.py: What this process could do at best, measured in the same run as what it did.
targets.py: What a benchmark aims at.
timing.py: How times are taken: process CPU time, contestants in turn, every sample kept.
host.py: `prolora benchmark host`: what a catalog costs the host, beside its bytes.
one_file.py: One migration of one file, stage by stage.
first.py: `prolora benchmark first`: one file, with nothing and with everything stored.
many_files.py: The memory of one process that migrates so many files.
memory.py: `prolora benchmark memory`: what a catalog holds, of few files and of many.
bases.py: `prolora benchmark bases`: bases of weights, ours against `torch.linalg.svd`.
catalog.py: `prolora benchmark catalog`: files to files, and what of it is not arithmetic.
made_updates.py: One module of a made pair and the updates of many adapters on it.
recompression.py: Recompression alone: from the parts of an arm to factors of a rank.
migrate.py: `prolora benchmark migrate`: migration of updates.

Never: files.
May import: anything but verification, nets, evaluation, cli.
"""
