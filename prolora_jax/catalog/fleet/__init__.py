"""A catalog by many workers, on one host or on many, over folders and object stores.

job.py: What is to be done, as every worker is told it; the note that one place has one job.
inputs.py: The adapters of a place, from its listing, and which of them must be looked at together.
receipts.py: What became of each input: written once, read together.
tables.py: Receipts of a whole run in one Parquet file.
dispatch.py: Which worker gets which inputs, and what the death of one means.
chunk.py: What a driver and its workers say to each other.
worker.py: One chunk of inputs in, outputs and receipts out.
publishing.py: Outputs from a worker's folder to where they belong, each once and whole.
share.py: Which part of a catalog a run does, and how.
holding.py: Which worker has which chunks: what it is at, and what it goes on with.
giving.py: One run: the work given out to a crew, and what becomes of it.
elsewhere.py: A job on the hosts of a Ray cluster: what each must see, how a worker starts there.
local_run.py: A run from its first look to its end, by processes of this host or a Ray cluster.
standing.py: How far a catalog is, in what little memory a driver has for each input.
ending.py: What is written when every input has its receipt.
made_store.py: A store with any number of adapters and receipts, to measure with; none is anywhere.
checking.py: Outputs held against their receipts; receipts set back.
"""
