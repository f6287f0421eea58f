"""A refinement on the nets of two real base models: one adapter, in phases.

student.py: The student on a real base model: its UNet with LoRA factors as an argument.
phases.py: One adapter's refinement in three phases, each with one net on the device.

Never: files.
May import: errors, engines, adapters, nets.
"""
