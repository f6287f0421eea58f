"""The VAE of the Stable Diffusion family in Flax (linen): pictures as latents, and back.

config.py: What a VAE computes, read off its `config.json`.
parts.py: Residual convolutions, attention in blocks, and the blocks that change resolution.
vae.py: The VAE, with parameters named as diffusers' Flax names them.
tiles.py: The VAE in overlapping tiles, for large pictures and little memory.
"""
