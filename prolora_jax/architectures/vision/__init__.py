"""Encoders that judge pictures: their layouts in files, and the trees that Flax has them in.

open_clip.py: CLIPs in OpenAI's and OpenCLIP's own layout, both towers, and CSD's.
dinov2.py: DINOv2 in its authors' layout.
lpips.py: VGG16 and the heads of LPIPS, from every layout they come in.
names.py: Transformers' names as the trees of its Flax classes.
"""
