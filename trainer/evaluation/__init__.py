"""Outputs become measures: loss and metrics."""
