"""Numerical parity of ported video diffusion transformers, logic and rounding measured apart."""

__version__ = "0.1.0"
