"""Evaluation: loss and metrics of a model's outputs."""
