"""What the tensors of a module mean."""
