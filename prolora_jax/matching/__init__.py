"""Which source module feeds which target module.

pairs.py: A source module and the target module that it feeds.
alignment.py: Monotone one-to-one alignment of two lists by dynamic programming (docs/method.md 8).
levels.py: Alignment of two base models, stack by stack.
known_sources.py: Where it is published which module comes from which, and weights agree.
matching.py: Which source module feeds which target module (docs/method.md 8).
base_models.py: Two base models matched: modules, and layers beside their parts.
slices.py: A target whose weights are some of the source's rows and columns.
vocabularies.py: The tokens of one language model, by what says them.
tokens.py: Which rows of two embeddings are of one token.

Never: jax, files.
May import: errors, architectures.
"""
