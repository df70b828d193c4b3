"""From raw records of different lengths to a dataset: the schema, the Beam transforms, the files."""
