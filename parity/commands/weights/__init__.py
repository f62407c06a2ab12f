"""`parity weights`: what is in checkpoints, what differs, which tensor is which."""

from parity.commands.weights.app import app

__all__ = ["app"]
