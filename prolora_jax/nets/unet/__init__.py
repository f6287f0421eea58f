"""The UNet of the Stable Diffusion family in Flax (linen).

config.py: What a UNet computes, read off its `config.json`.
layers.py: The plain layers of a UNet, with what all of one net's layers share.
attention.py: Transformer blocks over the pixels of a picture, with a text to look at.
embeddings.py: How a UNet is told the time and the size of the picture.
resnet.py: Residual convolutions, and the layers between resolutions. Pictures are NHWC.
blocks.py: The blocks of a UNet: one resolution down, the middle, one resolution up.
unet.py: The UNet, with parameters named as diffusers' Flax names them.
loading.py: UNets from disk and back, and new ones; without torch.
"""
