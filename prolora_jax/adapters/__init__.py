"""What an adapter is: its modules, the base model it is for, its spelling in files.

adapter.py: Host records of an adapter: every tensor of a file is in `modules` or in `extras`.
late.py: Modules whose factors are made when they are asked for, and held one module at a time.
algorithms/: What the tensors of a module mean.
combination.py: Several adapters as one: the weighted sum, as factors side by side.
comparison.py: Two adapters side by side, module by module, on factors.
formats/: How adapters are spelled: a dict of tensors becomes an `Adapter`, and back; no disk.
detection.py: Which published base model an adapter was trained on: evidence, candidates.
transformer_evidence.py: Which published transformers have an adapter's modules, and words on it.
fitting.py: An adapter held against a base model: whether it is for it, and where its modules are.
inspection.py: What an adapter file is, as a record: for `prolora inspect` and for catalogs.
licences.py: Whether what people write beside an adapter forbids derivatives.

Never: jax, files.
May import: errors, layout, architectures.
"""
