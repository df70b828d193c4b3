"""Commands that look into a dataset: `inspect` and `verify`."""
