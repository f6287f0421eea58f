"""Small diffusion models that anyone can train, to see which adapters survive a move.

adapters.py: Adapters in training and as files: LoRA factors by module path.
controls.py: Arms that know nothing, to tell what the others' knowledge is worth.
data.py: What the laboratory's models are shown: digits, known transforms of them.
classifier.py: A small classifier whose features generated pictures are compared in.
diffusion.py: Noise, the net's target and sampling: cosine schedule, velocity prediction.
distillation.py: Batches whose target comes from another net: for pruned nets.
losses.py: Losses on pictures that no model has seen, with the same noise for every model.
nets.py: The laboratory's nets: a small UNet of the Stable Diffusion family, and its pruned child.
recipe.py: What the laboratory trains, as data: base models, adapters, budgets.
lessons.py: What each base model is shown, and what each adapter has to teach it.
summary.py: Tables of a sweep.
plots.py: Pictures of a sweep: what arrived, by arm, by distance, by rank of the subspaces.
train.py: Training of whole nets and of adapters, on batches that the host draws.
verdicts.py: The rules of docs/evidence.md that turn results into defaults.
refine_verdicts.py: The rules about `refine`: worth its steps, its guard, its teacher, `auto`.
evidence_page.py: What of docs/evidence.md is made from results: tables.
refine_page.py: The same of the sweep of `refine`, with what its rules make of it.
pictures_page.py: The same of pictures that refined adapters make: rule 14.
summary_page.py: The page's short tables: a line for each target, with the arms that matter.
once.py: What is computed once: answers of nets that were asked before, and compiled programs.
workshop.py: The laboratory's folder: base models and adapters.
activations.py: What the linear modules of two nets see when both are shown the same pictures.
exams.py: What an adapter's effect on a target is judged on: rows that no model has seen.
samples.py: Pictures that a target makes with an adapter.
pair_samples.py: What two base models draw, and what each says of the other's pictures.
trials.py: One adapter moved to one target, in every way that is asked for, and what came of it.
beyond.py: Ways to move an adapter that the paper does not have, all of them without training.
refining.py: Arms that learn from samples of the models alone, and their teachers without a student.
lm/: Language models that anyone can train, their relatives, and what moves between them.
sweep.py: Arms x options x targets x adapters x seeds: what to try, as data.
"""
