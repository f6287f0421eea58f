"""CLIP's text encoders: their tensors, and their names in single files.

single_files.py: Text encoders in single files, and OpenCLIP's names for them.
table.py: Every tensor of CLIP's text encoders, as diffusers names them.
"""
