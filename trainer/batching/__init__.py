"""Plans of the batches of an epoch, computed in NumPy before any record is read."""
