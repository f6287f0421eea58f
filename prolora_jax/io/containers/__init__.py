"""Files that hold tensors, whatever the tensors are.

msgpack_tree.py: Flax's msgpack files, read one array at a time.
orbax_tree.py: Orbax folders, read one array at a time, as NumPy arrays. Orbax is loaded when one
    is met.
flax_checkpoint.py: Flax parameter trees on disk, presented as torch tensors: same keys, shapes
    and layout.
pickle_child.py: The program that opens pickles: `python -P pickle_child.py INPUT OUTPUT`, run by
    `pickles`.
safetensors_header.py: The header of a safetensors file, read before anything believes what it
    says.
signatures.py: What people hold for a safetensors file, told by its first bytes.
streamed.py: Writing a safetensors file tensor by tensor: the one place where such files are
    written.
tensors.py: Reading and writing safetensors files, as NumPy arrays.
pickles.py: Pickles (.pt .bin .ckpt .pth), for those who allow them: opened by another process.
"""
