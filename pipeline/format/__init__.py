"""The bytes of a dataset, written and read: Examples, TFRecord files, indexes, the manifest."""
