"""Who does independent tasks, and how far it has come: threads, worker processes.

crew.py: Worker processes that keep what they have opened, and may die alone.
prefetch.py: The next items of an iterable, made in a thread meanwhile.
processes.py: Worker processes for NumPy work: one BLAS thread each, over independent tasks.
ray_crew.py: The same on the hosts of a Ray cluster; alone knows Ray.
ray_worker.py: A worker there, in its own process.
turns.py: A worker's tasks, one after the other: the next is made ready while one is at work.
progress.py: What work calls to say how far it has come.

Never: jax, files.
May import: errors.
"""
