"""Weights in few bits: which tensors belong to one, and the floats that they stand for.

packed_weight.py: A packed weight as its packing presents it, and a packing as data.
recognition.py: Which modules of a file are packed, and how, from names and dtypes alone.
refusals.py: Packings that are not read, by a name that only they have.
bitsandbytes.py: nf4, fp4 and int8 of bitsandbytes.
scaled.py: Numbers of 8 bits times scales on a grid.
fp8.py: Floats of 8 bits with scales: per tensor, per row, per block.
gguf_header.py: The header of a GGUF file: its values, and which tensors are where.
gguf_file.py: GGUF files: tensors in blocks, unpacked by the `gguf` package.
mxfp4.py: Experts of gpt-oss: floats of 4 bits, and for 32 of them a power of two.
integer_groups.py: GPTQ and AWQ: whole numbers of few bits in groups, packed into int32.
tensor_subclasses.py: torchao and optimum-quanto: tensor subclasses of torch, saved as tensors.
"""
