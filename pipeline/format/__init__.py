"""The files of a dataset, written and read: Examples, TFRecord files, indexes, vocabularies and the manifest."""
