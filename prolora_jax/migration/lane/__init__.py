"""Files that have one table of tensors: all but their numbers is done once, and odd ones go alone.

table.py: What all files with one table of tensors share: modules, plan, places of their bytes.
output.py: Where the numbers of an output stand, traced through the writing of a made-up one.
room.py: Blocks that files are read into, used again and again.
reading.py: One file into its place in the blocks, looked at, hashed and measured.
moving.py: All files of a batch through a method.
writing.py: One output with its report, from where its numbers lie.
lane.py: The files of one table, batch after batch.
"""
