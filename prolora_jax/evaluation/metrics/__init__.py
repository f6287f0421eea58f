"""Measures: arrays in, numbers out.

preprocessing.py: Pictures as each encoder was shown them in training.
embeddings.py: Embeddings side by side: checked, and their cosines.
clip_t.py: How well pictures show what their prompts say.
clip_i.py: How alike two sets of pictures are to CLIP.
dino.py: How alike two sets of pictures are to DINOv2.
hps.py: How well people would like pictures for their prompts.
csd.py: How alike the style of two sets of pictures is.
mmd.py: How far apart two sets of pictures are as distributions.
fd_dino.py: The same, each set taken as a normal distribution.
lpips_diversity.py: How differently the pictures of one set look.
intervals.py: Intervals of means over pictures, and of differences of two arms.
shares.py: How much of an adapter arrived: share of the loss gap.
"""
