"""From prompts to pictures.

diffusers_flax.py: The one door to the Flax classes of diffusers.
pipeline.py: Text encoders, UNet, sampler and VAE of one base model.
devices.py: Pictures spread over devices.
generation.py: Pictures from prompts and seeds, compiled once, over as many devices as there are.
delta.py: Delta Sampling: an adapter's effect on its source, added to another base's answers.
answers.py: What a base model says of given noisy pictures, and latents that it draws.
pipeline_loading.py: Pipelines from disk, each part checked against its configuration.
stock.py: diffusers' own Flax pipelines with our nets in place.
"""
