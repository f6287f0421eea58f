"""Language models: what their layers are called, and where their weights are.

names.py: Names of a language model's tensors, whatever a program has put before them.
fused.py: Layers that one model has as one and another as several, and experts.
layouts.py: Which tensors are layers, and which of them are stored the other way round.
facts.py: What a configuration says and tensors do not: how many heads there are.
stacked.py: Models put together of other models' layers: which layer is which.
heads.py: Whether the heads that a configuration says are those of the weights.
gguf_names.py: What GGUF files call the tensors, and in which order they have their rows.
tree_names.py: What trainers in JAX call the layers, and how they keep the rows of q and k.
"""
