"""Encoders that judge pictures, in Flax (linen): CLIP's, DINOv2, and LPIPS.

config.py: What an encoder of pictures computes, read off its `config.json`.
positions.py: Embeddings of positions for pictures of another size.
parts.py: The layers of a vision transformer, in the names of both kinds.
vit.py: One vision transformer for CLIP's and DINOv2's encoders. Pictures are NHWC.
lpips.py: How differently two pictures look, from what VGG16 makes of them.
loading.py: Parameters of encoders, once every shape is what it must be.
"""
