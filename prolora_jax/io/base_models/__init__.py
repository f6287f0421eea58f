"""Base models on disk and from the hub.

hub.py: Base models from the hub: the files that are read here, and no others.
shards.py: The index of a checkpoint in several files, believed as far as it fits them.
model_files.py: Which files hold a base model's weights.
streamed_file.py: A safetensors checkpoint read by ordinary reading, whole or piece by piece.
weight_file.py: What every open container of a base model's tensors can do.
packed_weights.py: Weights in few bits, read as if the file had their floats.
lm_facts.py: What stands beside a language model's weights: how many heads there are.
gguf_model.py: GGUF files as base models: transformers' names, transformers' order of rows.
weight_source.py: Where one weight of a base model is, and how it is read from there.
checkpoint.py: Base models on disk, in whatever container they come, read weight by weight.
pipeline_files.py: A text-to-image pipeline on disk: its parts and their configurations.
tokenizer_files.py: The files of a CLIP tokenizer, read and checked.
gguf_tokens.py: The tokens in the header of a GGUF file, each at its number.
tokenizer_json.py: `tokenizer.json` beside a language model's weights, as it stands there.
lm_files.py: A language model as transformers keeps it: its configuration, every tensor.
unet_files.py: A UNet as diffusers keeps it: `config.json` and its tensors.
"""
