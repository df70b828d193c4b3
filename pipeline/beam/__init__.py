"""The Beam transforms, and the job of `lengthwise prepare`."""
