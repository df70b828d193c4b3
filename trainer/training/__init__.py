"""Batches become weights: the training loop."""
