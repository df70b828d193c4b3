"""Raw records of different lengths become a dataset: the schema, the file formats and the Beam transforms."""
