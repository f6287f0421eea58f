"""CLIP's text encoders: their tensors, and their names in single files.

single_files.py: Text encoders in single files: which component they are, and OpenCLIP's names for
    them.
table.py: Every tensor of the CLIP text encoders that Stable Diffusion models use, as diffusers
    names them.
"""
