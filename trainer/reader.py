"""Forwards `batches` from its former module for one more version. Use `lengthwise.batches`."""

from trainer.reading.batches import batches

__all__ = ["batches"]
