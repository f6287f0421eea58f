"""Files that hold tensors, whatever the tensors are."""
