"""The model: raw values in, outputs and losses out."""
