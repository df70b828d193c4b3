"""Reads the batches of a dataset, and trains, evaluates, exports and applies a masked LSTM."""
