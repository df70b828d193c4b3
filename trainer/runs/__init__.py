"""The folder of a training run and the files in it."""
