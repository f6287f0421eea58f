"""From noise to latents: schedules, samplers, and their loop.

lcm_config.py: What LCM's sampler has to know of a net, read off any scheduler's configuration.
noise.py: The noise of each picture, from a key of its own.
lcm.py: Sampling in a few steps by a latent consistency model (LCM).
denoising.py: From noise to latents: the loop of a sampler around the UNet, with guidance.
levels.py: How much of a picture is left at each time of a net's training.
samplers.py: Which sampler draws: the one that a pipeline names, or another.
"""
