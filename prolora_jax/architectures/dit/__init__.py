"""Diffusion transformers: what their modules are called, and where their weights are.

names.py: What one family calls its modules: diffusers' names, its authors' names.
streams.py: Families with a stream for the picture and one for the text.
cross.py: Families with one stream, which looks at the text or has it inside.
families.py: The families, and which of them a model is.
originals.py: Which rows of which weight of the authors' model a module is.
spellings.py: What adapter files call the layers, behind which prefixes.
trees.py: MaxDiffusion's parameters: which layer of a tree a module is in.
layouts.py: Where a file has the weights: its prefix, its family, its rows.
correspondence.py: Which block of one published transformer each block of another comes from.
published.py: Published transformers by id, and which of them a model is.
tables_streams.py: Modules of published transformers with two streams.
tables_cross.py: Modules of published transformers with one stream.
wholeness.py: What a base model must have: whole stacks, and no unknown ones.
checkpoints.py: What words say of checkpoints whose shapes are equal.
stacks.py: What a diffusion transformer numbers.
"""
