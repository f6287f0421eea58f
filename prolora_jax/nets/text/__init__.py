"""Text encoders: prompts become numbers, and numbers what a UNet is told.

config.py: What a CLIP text encoder computes, read off its `config.json`.
clip.py: CLIP's text encoder in Flax (linen), with parameters named as transformers' are.
tokens.py: CLIP's tokenizer: prompts as numbers.
weighting.py: Weights in prompts, `(ink:1.2)`.
prompts.py: Prompts of any length as numbers, in chunks, with weights beside them.
"""
