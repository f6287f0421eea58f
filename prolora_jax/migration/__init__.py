"""The job: adapters moved from one base model to another.

blocks.py: Blocks of rank columns: a menu of widths, so that few programs are compiled for any
    catalog.
combination.py: Several adapters as one: the weighted sum of their updates, exact, as factors side
    by side.
evidence.py: How alike weights of two base models are: what `matching` decides on.
pair_work.py: What is computed once per pair of weights, from their bases in a store: by worker
    processes, too.
pair.py: A source and a target base model together: matching by weights, similarity, operators.
execute.py: Steps of plans on the device: the rank columns of many adapters as one block per
    module.
single.py: One adapter from a source to a target: match, measure, plan, run the plan, report.
many.py: Many adapter files through the engine: read ahead, migrate in batches, write behind.

Never: files.
May import: errors, layout, engines, method, architectures, adapters, matching, plans, io,
    subspaces.
"""
