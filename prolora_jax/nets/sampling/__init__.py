"""From noise to latents: schedules, samplers, and their loop.

noise.py: The noise of each picture, from a key of its own.
training_noise.py: The noise that a net was trained with, and what it predicts.
spacing.py: Where a run steps from, and how much noise there is.
table.py: A run of a sampler as a table of numbers.
scheduler.py: The loop's side of every sampler.
ddim.py: DDIM without added noise.
pndm.py: PNDM: pseudo linear multi-steps.
euler.py: Euler's method, and the ancestral one that adds noise.
dpm.py: DPM-Solver++.
unipc.py: UniPC: each answer corrects the last step before it predicts the next.
lcm.py: Sampling in a few steps by a latent consistency model (LCM).
denoising.py: From noise to latents: the loop of a sampler around the UNet, with guidance.
levels.py: How much of a picture is left at each time of a net's training.
samplers.py: Which sampler draws: the one that a pipeline names, or another.
"""
