"""One file for each signature, with what detects it and what plants it."""
