"""Adapters on disk: files, folders, and what stands beside them.

flax_file.py: Adapters and parameters in msgpack: the bytes of `flax.serialization`, without Flax.
hashes.py: The hashes by which web sites and user interfaces know an adapter file.
gguf_lora.py: llama.cpp's LoRA files: the header of a GGUF file, and pairs of tensors.
tree_places.py: Where trees of tunix and MaxText have factors, and how their axes lie.
tree_folder.py: Trees of tunix and MaxText on disk: orbax folders with factors of qwix's.
easydel_folder.py: EasyDeL's checkpoints: a whole model, and the factors beside its kernels.
mlx_folder.py: MLX-LM's folders: its own configuration beside `adapters.safetensors`.
peft_folder.py: PEFT's folders: `adapter_config.json` beside `adapter_model.safetensors`.
files.py: Adapter files on disk.
known_tables.py: Adapter files whose header was seen before: their bytes, to where they are needed.
leftovers.py: What lies among adapters and is none: states of training runs, earlier outputs, work.
inputs.py: Which adapters some paths stand for, and where each one's output goes.
sidecars.py: Files beside an adapter that are about it: found, read, carried along.
whole_files.py: Adapter files as wholes: converted, inspected, compared; no device.
license_check.py: The licence of an adapter, wherever it stands: its header, the files beside it.
"""
