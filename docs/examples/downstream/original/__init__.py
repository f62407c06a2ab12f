"""The original, as its authors wrote it."""
