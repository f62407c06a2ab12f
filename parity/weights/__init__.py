"""Weights: tensor sources, key maps and their coverage."""
