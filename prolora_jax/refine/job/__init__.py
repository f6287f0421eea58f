"""A refinement on the nets of two real base models: one adapter, in phases.

prompts.py: What pools show: prompts, the adapter's own words among them.
student.py: The student on a real base model: its UNet with LoRA factors as an argument.
phases.py: One adapter's refinement in three phases, each with one net on the device.
refined.py: One adapter refined: what each phase has done kept on disk, and a fit that goes on.

Never: files.
May import: errors, engines, adapters, nets, io.
"""
