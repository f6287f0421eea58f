"""A refinement of language models' adapters, on text that the models write themselves.

recipe.py: What is asked of it.
pools.py: Texts that models write, and how likely a model finds them.
answers.py: What a student is to say: the effect on the target's logits, its likeliest tokens.
student.py: The target with factors as an argument, and how far it is from the answers.
opening.py: A pair of language models, ready to be refined on.
pair.py: Adapters of one pair refined: both models on the device, all kept on disk.
"""
