"""The oracle: a dense float64 recomputation that shares no numerics with what it checks.

companions.py: Vectors beside the pairs, checked against the input.
dense.py: The method in dense float64 NumPy, for `verify`: slow, plain.
result.py: What came of a check: module by module, and for the file as a whole.
multiplied.py: Dense updates of algorithms that multiply the weight, and of AdaLoRA and VeRA.
structured.py: Factors that were made of another algorithm's update, against that update, dense.
magnitudes.py: Magnitudes of an output's modules of DoRA, against input and both weights, dense.
budget.py: A rank that was spread over the modules of a file, against all singular values.
own_tensors.py: Modules of LoHa and LoKr that an output has as they were in its input.
refined.py: A refined file as the copy it was before, and what of the student can be seen.
factors.py: A check of a file, with the check of the factors that were made of other algorithms.
slices.py: Which rows and columns of a source a target has, found anew.
saved_layers.py: Layers of peft's `modules_to_save`, recomputed.
tokens.py: Tokens of two base models, read anew: which rows go where.
weights.py: A base model and an adapter's module, as far as a check needs them.
sampling.py: Which modules are recomputed where all of them would take minutes.
recompute.py: Recomputations of many modules: in turn, or by worker processes.
claim.py: What a report claims: read, and looked up by what its records are about.
evidence.py: How alike weights are, densely: what a matching is decided on, computed anew.
replan.py: What should be done with every module, from names, shapes, patterns and weights.
decisions.py: What the report says became of each module, against the new plan.
dtypes.py: Whether an update had to be written in float32.
updates.py: The update and the numbers of one moved module, against what they should be.
by_sight.py: What can be said of a projected module without a decomposition.
contents.py: Every tensor of a file accounted for.
made_from.py: What a report says of the input as a whole: flags of the file, parts of a sum.
header.py: The header strings of a file, against its report, its input and both bases.
totals.py: The totals of a folder's reports, against the file, its input and the plan.
whole_file.py: What of a file is wrong beyond single modules.
open_options.py: Options that another value would give the very same file for.
adapter.py: A migrated adapter checked, module by module and as a whole.
without_input.py: A migrated adapter checked without the adapter that it was made from.
file.py: A migrated file checked; it alone reads from disks, through `io`.

Never: jax, files.
May import: errors, engines, architectures, adapters, matching, plans, io.
"""
