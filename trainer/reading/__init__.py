"""Readers that turn the files of a dataset into padded batches."""
