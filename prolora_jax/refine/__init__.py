"""An adapter taught to another base model by samples of the models alone: docs/refine.md as code.

parametrisation.py: Noise, velocity and flow brought to one, so that predictions can be subtracted.
teacher.py: What the student is to answer: the effect on the target, or the source's own answer.
guard.py: Whether two base models draw the same kind of pictures, and what follows from it.
triggers.py: Which words an adapter answers to, found without data.
rows.py: What a student is shown: noised samples, and the answers to them.
bounds.py: What a recipe may ask for: what could not be followed is refused at once.
fitting.py: The student: Adam on LoRA factors, resumable after any step, over a mesh.
lm/: A refinement of language models' adapters, on text that the models write.
job/: A refinement on the nets of two real base models: their adapters, in phases.

Never: files.
May import: errors, engines, adapters, architectures, plans, nets, io, migration.
"""
