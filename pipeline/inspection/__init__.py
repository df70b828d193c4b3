"""Commands that read a dataset: `inspect` shows what it contains, `verify` checks every byte."""
