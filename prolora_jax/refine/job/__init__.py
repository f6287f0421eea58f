"""A refinement on the nets of two real base models: their adapters, in phases.

recipe.py: What is asked of a refinement: all that its numbers depend on, beside models and adapter.
prompts.py: What pools show: prompts, and the adapter's own words after them.
devices.py: The devices that a refinement is spread over.
base_net.py: A base model on the device: the samples that it draws, and what it says of rows.
shared.py: What all adapters of a pair share: samples of both base models, and R.
effect.py: What one adapter does on its source: words, samples and answers.
student.py: The student on a real base model: its UNet with LoRA factors as an argument.
kept_state.py: The state of a fit on the disk.
refined.py: Adapters of one pair refined: three phases, one net on the device, all kept on disk.
bases.py: Two base models that are to draw for each other, and whether they can.
in_turn.py: One after another, where one that is refused stops no other.
files.py: Adapter files refined to files, with their reports.
deciding.py: `--method auto` in words: what an adapter gets, and why.
by_samples.py: Whether two base models draw the same kind of pictures: R, without any adapter.
"""
