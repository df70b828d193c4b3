"""The Beam transforms, and the job that `lengthwise prepare` runs."""
