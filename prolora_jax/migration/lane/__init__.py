"""Files that have one table of tensors: everything but their numbers is done once for all.

A table's names, checks, plan, places of bytes in the input and in the output are worked out with
its first file. Of every other file the bytes go from the disk into blocks, through the device and
back, without a look at a single module. Whatever is odd about a file, an alpha of 0, a number that
is none, a module without an update, sends it the way of a single file, which knows them all.

table.py: What all files with one table of tensors share: modules, plan, places of their bytes.
output.py: Where the numbers of an output stand, traced through the writing of a made-up one.
room.py: Blocks that files are read into, used again and again.
reading.py: One file into its place in the blocks, looked at, hashed and measured.
moving.py: All files of a batch through a method.
writing.py: One output with its report, from where its numbers lie.
lane.py: The files of one table, batch after batch.

Never: files.
"""
