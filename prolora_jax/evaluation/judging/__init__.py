"""What adapters are worth on a base model, on pictures: drawn, measured, shown.

request.py: What is to be judged, and where its pictures are.
protocols.py: How the paper measured, and what it found.
concept_prompts.py: The prompts that DreamBooth judges subjects by.
arms.py: The arms of an adapter: what each draws with.
taught.py: The arm `refine`, made here by the job of `prolora refine`.
given.py: Folders of pictures that another program drew, as arms.
drawing.py: The pictures of every arm, one file each: what was drawn before is kept.
texts.py: Prompts as an encoder of pictures was taught them.
metrics.py: Which metrics there are, and what each compares.
judge.py: Scores of every arm: means with intervals, and paired differences to a copy.
tables.py: Scores as tables for spreadsheets.
page.py: The page about an evaluation.
run.py: All of it as one job.
"""
