"""Raw files become parsed records, or rejects with a reason."""
