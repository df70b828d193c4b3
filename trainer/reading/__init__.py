"""Readers that yield the records of a dataset as padded batches."""
