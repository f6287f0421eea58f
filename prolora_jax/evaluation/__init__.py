"""What a migration is worth: pictures side by side, the demo, the laboratory.

grid.py: Pictures side by side: a column for each way of making them.
metrics/: Measures: arrays in, numbers out.
encoders.py: Encoders that judge pictures, by name.
scoring.py: Folders of pictures, embedded in batches over devices.
laboratory/: Small diffusion models that anyone can train, to see which adapters survive a move.
demo.py: The embedded demo: a small trained net, its pruned child, and a style that has to move.
pictures.py: Heat maps: numbers by block and role.
demo_refine.py: The demo's arm that learns: the style copied, then taught by samples of both nets.
demo_run.py: The demo as one job: a style moved by every method, verified, judged, drawn.
drawer.py: A base model that draws with one adapter or another, by one program for all.
judging/: What adapters are worth on a base model, on pictures.
side_by_side.py: What a base model draws with an adapter, moved to it by each method.

Never: files.
May import: anything but catalog, benchmarks, cli.
"""
