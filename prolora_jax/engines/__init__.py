"""Who does independent tasks, and how far it has come: threads, worker processes.

prefetch.py: The next items of an iterable, made in a thread while the present one is worked on.
processes.py: Worker processes for NumPy work: one BLAS thread each, over independent tasks.
progress.py: Called with how far work has come.

Never: jax, files.
May import: errors.
"""
