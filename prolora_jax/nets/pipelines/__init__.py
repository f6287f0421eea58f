"""From prompts to pictures.

diffusers_flax.py: The Flax classes of diffusers and transformers: loaded guarded, and mended
    where they break.
pipeline.py: From prompts to pictures: text encoders, UNet, sampler and VAE of one base model.
generation.py: Pictures from prompts and seeds, compiled once, over as many devices as there are.
pipeline_loading.py: Pipelines from disk: every part is read, checked against its configuration,
    and put together.
stock.py: diffusers' own Flax pipelines with our UNet in place: bases that theirs cannot express
    run.
"""
