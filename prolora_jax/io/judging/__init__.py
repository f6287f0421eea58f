"""What judging pictures reads and keeps: weights of encoders, pictures, embeddings.

weights.py: Weights of encoders: where they are, on the disk or the hub, and their tensors.
pictures.py: Pictures of a folder: which there are, what is in them, and those that are refused.
kept.py: Embeddings that were computed before, by picture and encoder.
"""
