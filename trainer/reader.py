"""The former place of `batches`, kept for one more version: use `lengthwise.batches`."""

from trainer.reading.batches import batches

__all__ = ["batches"]
