"""The schema: the features and the label of a record, and the splits of a dataset."""
