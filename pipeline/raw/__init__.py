"""Raw files become sequences, or rejects with a reason."""
