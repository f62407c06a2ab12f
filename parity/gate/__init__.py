"""The gate that ratchets: an accepted state, and what a run has new or worse. Computes on records; opens no file."""
