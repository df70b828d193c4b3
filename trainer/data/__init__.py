"""An opened dataset, and the tensors made from its stored values."""
