"""What a migration is worth: pictures side by side, the demo, the laboratory.

grid.py: Pictures side by side: a column for each way of making them, a row for each prompt and
    seed.
metrics/: Measures: arrays in, one number out.
laboratory/: Small diffusion models that anyone can train, to see which adapters survive a move.
demo.py: The embedded demo: a small trained net, its pruned child, and a style that has to move.
pictures.py: Pictures: numbers by block and role.
side_by_side.py: What a base model draws with adapters: as they are, moved to it by each arm, or
    without any.

Never: files.
May import: errors, layout, engines, method, architectures, adapters, matching, plans, io,
    verification, subspaces, migration, nets.
"""
