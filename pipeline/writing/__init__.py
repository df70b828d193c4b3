"""Sorted records become a published dataset: shards, indexes, rejects and the manifest."""
