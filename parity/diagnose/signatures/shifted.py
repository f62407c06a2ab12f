"""The value is moved along an axis and what falls off is lost: a causal pad too much, a frame dropped."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, close, signature


def detect(seen: Seen) -> str | None:
    """Find the axis and how far the value is moved along it, without coming back in."""
    for dim, size in enumerate(seen.reference.shape[:-1]):
        for step in (1, 2, 3):
            if size < 3 * step + 1:
                continue
            for way, n0, r0 in (("later", step, 0), ("earlier", 0, step)):
                n, r = seen.native.narrow(dim, n0, size - step), seen.reference.narrow(dim, r0, size - step)
                if close(n, r) and float(r.norm()):
                    return f"{step} {way} along axis {dim} of {seen.reference.dim()} (size {size}), the ends apart"
    return None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Repeat the first token and drop the last."""
    tokens = value.shape[-2]
    return value.narrow(-2, 0, tokens - 1)[..., [0, *range(tokens - 1)], :]


SIGNATURE = signature("shifted", "value", 4, detect, plant)
