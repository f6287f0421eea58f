"""How adapters are spelled: a dict of tensors becomes an `Adapter`, and back; no disk.

companion_keys.py: Keys of vectors beside the pairs: a bias, a norm's weight.
components.py: Which component a module's name belongs to: a closed set of prefixes.
comfyui.py: ComfyUI's own names: `diffusion_model.<LDM path>`, `text_encoders.clip_l....`.
folding.py: Scales multiplied into the factors, for files that have no field for them.
diffusers.py: Diffusers' keys: `unet.<dotted path>.lora_A.weight` and `.lora_B.weight`, scale 1.
flax_keys.py: Keys of a Flax tree with `/` between its levels, and the tensors under them.
keys.py: The grammar of tensor keys: module name, then suffix. Each key is read by itself.
kohya.py: Kohya's keys: `lora_unet_<flat path>.lora_down.weight`, `.alpha`.
config_fields.py: What a LoraConfig may say: followed, without effect, refused.
saved_layers.py: Whole layers that peft saves, by what its configuration names.
token_rows.py: Whole rows of an embedding: which tokens they are of, by peft's configuration.
lora_config.py: The scale that peft and diffusers keep beside the tensors.
header_strings.py: Header strings: what is carried over, rewritten for another base model.
plain_scale.py: A scale that stands in plain header strings alone.
maxdiffusion.py: MaxDiffusion's files: kohya's keys, an alpha on every module, one rank.
magnitude_keys.py: Keys of DoRA's magnitudes, in the formats that have one.
own_keys.py: Keys of modules that are written as they are: LoHa and LoKr.
gguf.py: llama.cpp's LoRA: a pair for a tensor of a GGUF model, and one alpha.
trees.py: Trees of tunix and MaxText: kernels' axes, one rank, one alpha.
mlx.py: MLX-LM's adapters: factors transposed, the scale itself, experts as one tensor.
modules.py: The tensors of one module: plain LoRA factors, the parts of another algorithm.
explaining.py: Tensors that only others of their file explain: IA3's vector, OFT's blocks.
parsing.py: Tensors of a file to an `Adapter`; each ends in a module, in `extras`.
peft.py: PEFT's folder: `base_model.model.<path>.lora_A.weight`, scale in the config.
segments.py: Pairs of fused layers cut into those of their parts, and put together again.
expert_parameters.py: Adapters of parameters that hold a layer of all experts.
regrouping.py: Modules of a language model's adapter as its base model has them.
other_networks.py: Pairs of layers of pictures and sound, which may stay behind.
transformer_layers.py: An adapter of a transformer with its base model's layers, fused ones cut.
original_layers.py: An adapter of a transformer with the original code's layers, fused.
resolution.py: An adapter against a base model: every module gets its dotted path and is checked.
dumping.py: An `Adapter` to tensors under the keys of one format.
flax_tree.py: Flax trees: `unet / ... / to_q / lora-<adapter> / {down, up} / kernel`.
flax_stacks.py: A transformer's pairs as those of a tree's layers, which hold whole stacks.
vllm.py: A folder of peft's for vLLM: one rank, no patterns, pairs alone.
published.py: Which published base model's names an adapter uses, where nobody has said it.
"""
