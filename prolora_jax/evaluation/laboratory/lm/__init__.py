"""Language models that anyone can train, their relatives, and what moves between them.

recipe.py: What is trained and tried, as data.
texts.py: Texts as tokens: rows that teach, documents that judge.
lessons.py: What adapters are taught, and what judges whether they know it.
training.py: Training of whole models and of adapters, by the student's own steps.
bases.py: Base models: made of nothing, of a folder, or of one another.
model_folders.py: Language models as folders that transformers would load, packed or not.
workshop.py: The laboratory's folder: base models and adapters.
arms.py: Every way in which an adapter is moved.
trials.py: One adapter on one target in every way, and what came of it.
verdicts.py: Rules 15 to 22 of docs/evidence.md.
page.py: What of docs/evidence.md is made from the results.
"""
