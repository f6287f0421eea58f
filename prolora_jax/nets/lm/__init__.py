"""Language models in Flax: what they predict, what they write, and where their weights come from.

config.py: What a language model computes, read off the `config.json` that transformers writes.
rope.py: Rotary positions: angles of pairs of channels, and their scaling for long texts.
layers.py: Attention, feed-forward nets, norms, and the layers made of them.
causal.py: The causal language model.
loading.py: Language models from disk, without torch.
adapting.py: LoRA factors beside a language model's kernels.
writing.py: Text that a model writes, token by token.
"""
