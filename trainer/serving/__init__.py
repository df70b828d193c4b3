"""Weights become predictions and exports."""
