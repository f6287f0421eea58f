"""The job: adapters moved from one base model to another.

blocks.py: Blocks of rank columns in a menu of widths, so that few programs are compiled.
merged.py: A merged adapter in its migration: what it is made of, and what its dtype is.
evidence.py: How alike weights of two base models are: what `matching` decides on.
kinship.py: Whether two language models are relatives at all.
row_search.py: Rows of a matrix that are rows of another, found by some of their numbers.
slicing.py: Layers that are rows and columns of the source's own.
tokens.py: Rows of embeddings and heads in their migration, found by their tokens.
pair_work.py: What is computed once per pair of weights, by worker processes, too.
pair.py: A source and a target base model together: matching by weights, similarity, operators.
edges.py: Numbers at the edges of a dtype: taken to the middle before work, put back after it.
placing.py: Operators on the devices of this host: each module has one device.
own_devices.py: That the devices are this process's own, and wait for no other host's.
projecting.py: One module of many adapters on a device: rank columns in, factors of files out.
experts.py: A target of two transformers, each of which gets an adapter of its own.
execute.py: Steps of plans on the device: one block per module for many adapters.
magnitudes.py: Modules of DoRA that stay so: their magnitudes, recomputed on the target's weights.
spreading.py: `--rank budget=` and `mean=`: a file's rank spread over its modules.
one_tokenizer.py: Two models of which one learns from the other's texts must share tokens.
saved_layers.py: Layers of peft's `modules_to_save`: what they differ by is added.
token_rows.py: Whole rows of an embedding: what they differ by from the source's is added.
own_modules.py: Modules of LoHa and LoKr that nothing changes, written as they are.
single.py: One adapter from a source to a target: match, measure, plan, run the plan, report.
opening.py: Two base models from where they lie, as a pair.
fitted.py: An adapter held against the source of a migration, other algorithms made into factors.
files.py: One adapter file: read and fitted to the source; written for the target.
base_similarity.py: How close two base models are, module by module, and what to expect.
ahead.py: Subspaces of base models computed ahead of their migrations.
one_file.py: The whole job for one output: an adapter file, or several merged.
each.py: The same for each transformer of a target: one output, or one for each of two experts.
jobs.py: What is to be done with one of many files, and what became of it.
lane/: Files that have one table of tensors: everything but their numbers is done once for all.
many.py: Many adapter files through the engine: read ahead, migrate in batches, write behind.

Never: files.
May import: anything but verification, catalog, nets, evaluation, benchmarks, cli.
"""
