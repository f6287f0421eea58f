"""What a base model is: its modules, their names in every spelling, their shapes.

naming.py: The spellings of a module: diffusers and LDM block names, dotted and flat.
clip/: CLIP's text encoders: their tensors, and their names in single files.
dit/: Diffusion transformers: what their modules are called, and where their weights are.
flax_parts.py: Text encoders and VAEs.
flax_trees.py: Flax trees: where each torch tensor is in one, and the way back.
llm/: Language models: what their layers are called, and where their weights are.
identify.py: Which published model a spec is, and the specs of published models.
likeness.py: Which published model another one is nearest to, and where the two differ.
norms.py: Norm layers of a base model: each by the layer that it feeds, which knows its width.
placement.py: Where a file has the weight of each module, whatever naming its keys follow.
recognition.py: A base model's modules, read off the tensor names and shapes of its checkpoint.
families.py: What is a stack in which component, by hand.
stack.py: A stack as a family declares it.
stacks.py: Where a module stands among the stacks of its component.
spec.py: A base model as data: which modules it has, under which names, in which shapes.
whole_layers.py: Authors' layers of transformers as modules of two models, beside their parts.
vision/: Encoders that judge pictures: their layouts in files, and their Flax trees.
unet/: UNets of the Stable Diffusion family: their tensors, their places, their spellings.

Never: jax, files.
May import: errors, layout.
"""
