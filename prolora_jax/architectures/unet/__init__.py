"""UNets of the Stable Diffusion family: their tensors, their places, their spellings.

correspondence.py: Which layer of its teacher each layer of a pruned model comes from.
stacks.py: What a UNet numbers: stages, the slots of a stage, the transformer blocks.
spellings.py: The LDM names of a UNet's modules: `input_blocks.4.1.proj_in`.
ldm.py: LDM names of a UNet read back: which module a key of such a file means.
table.py: Every tensor of a diffusers UNet, generated from a few numbers.
published.py: Published UNets by id, as the numbers from which `unet_table` lists their tensors.
family.py: What decides which published UNet another one is like, and what may differ.
"""
