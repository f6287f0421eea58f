"""Files that hold tensors, whatever the tensors are.

msgpack_values.py: How many values a msgpack document has, counted before any of them is made.
msgpack_tree.py: Flax's msgpack files, read one array at a time.
open_file.py: A file of a base model that stays open, read at any place by ordinary reading.
indexed_tree.py: Folders of arrays that an index lists, as eformer writes them for EasyDeL.
orbax_tree.py: Orbax folders, read one array at a time.
flax_checkpoint.py: Flax parameter trees on disk, presented as torch tensors.
pickle_child.py: The program that opens pickles, run by `pickles` in a process of its own.
safetensors_header.py: A safetensors header, read before anything believes what it says.
header_tables.py: What a file says of its tensors, as a digest; most files share few of them.
packed/: Weights in few bits: which tensors belong to one, and the floats that they stand for.
signatures.py: What people hold for a safetensors file, told by its first bytes.
streamed.py: The one writer of safetensors files, tensor by tensor.
tensors.py: Reading and writing safetensors files, as NumPy arrays.
pickles.py: Pickles (.pt .bin .ckpt .pth), for those who allow them: opened by another process.
"""
