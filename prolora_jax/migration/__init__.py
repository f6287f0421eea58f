"""The job: adapters moved from one base model to another.

blocks.py: Blocks of rank columns in a menu of widths, so that few programs are compiled.
combination.py: Several adapters as one: the weighted sum, as factors side by side.
evidence.py: How alike weights of two base models are: what `matching` decides on.
pair_work.py: What is computed once per pair of weights, by worker processes, too.
pair.py: A source and a target base model together: matching by weights, similarity, operators.
edges.py: Numbers at the edges of a dtype: taken to the middle before work, put back after it.
execute.py: Steps of plans on the device: one block per module for many adapters.
single.py: One adapter from a source to a target: match, measure, plan, run the plan, report.
many.py: Many adapter files through the engine: read ahead, migrate in batches, write behind.

Never: files.
May import: anything but verification, catalog, nets, evaluation, benchmarks, cli.
"""
