"""Flax nets that run: the UNet, samplers, pipelines, adapters on them, encoders of pictures.

adapters/: Adapters on the parameters of running nets.
lm/: Language models: what they predict and what they write.
text/: Text encoders: prompts become numbers, and numbers what a UNet is told.
unet/: The UNet of the Stable Diffusion family in Flax (linen).
vae/: The VAE of the Stable Diffusion family: pictures as latents, and back.
pipelines/: From prompts to pictures.
promotion.py: How arrays of different dtypes and ranks come together where a net is computed.
vision/: Encoders that judge pictures: CLIP's, DINOv2, and LPIPS.
sampling/: From noise to latents: schedules, samplers, and their loop.

Never: files.
May import: errors, layout, engines, architectures, adapters, io.
"""
