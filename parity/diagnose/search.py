"""The nearest variants of a reference at the taps of one draw, searched where its model is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from parity.diagnose.candidates import Target
from parity.diagnose.forwards import Forwards
from parity.diagnose.nearest import Nearest, nearest_variants
from parity.draws import Draw, aligned
from parity.execution.passes import FromReference, mask_of
from parity.execution.storage import bits
from parity.execution.tap import Tap
from parity.execution.trace import Trace
from parity.live import LiveReference
from parity.stage import DrawOf, Dtypes


def target_of(draw: Draw, tap: Tap) -> Target:
    """Return what a variant of the reference is to come near to at a tap."""
    r = draw.reference.values[tap.name].low
    valid = None if tap.valid is None else mask_of(tap, draw.inputs, r)
    wide = any(key.endswith("float64") for key in draw.native.segment_before(tap.name))
    native = aligned(tap, draw.native.values[tap.name].low, r.shape)
    return Target(tap.name, native, valid, tap.has_attention, wide, tap.kind)


def low_dtypes(draw: Draw) -> list[torch.dtype]:
    """Return the 16-bit dtype the two sides compute in; where neither does, those that something may be rounded to."""
    dtypes = [v.dtype for trace in (draw.reference, draw.native) for v in trace.values.values()]
    low = [d for d in dtypes if d.is_floating_point and bits(d) <= bits(torch.float16)]
    return [max(dict.fromkeys(low), key=low.count)] if low else [torch.bfloat16, torch.float16]


def by_dtype(
    look: Callable[[Sequence[Target], torch.dtype], Mapping[str, Nearest]],
    targets: Sequence[Target], lows: Iterable[torch.dtype],
) -> dict[str, Nearest]:  # fmt: skip
    """Search with one 16-bit dtype after the other, as long as there is something left to explain.

    Args:
        look: searches some targets with one dtype.
        targets: what is to be explained.
        lows: the dtypes.
    """
    found: dict[str, Nearest] = {}
    for low in lows:
        left = [t for t in targets if t.name not in found or not found[t.name].explains]
        for name, variant in (look(left, low) if left else {}).items():
            if name not in found or variant.ratio < found[name].ratio:
                found[name] = variant
    return found


def search(
    reference: LiveReference, draw: DrawOf, base: Trace, targets: Sequence[Target], dtypes: Dtypes, low: torch.dtype
) -> Mapping[str, Nearest]:
    """Search the nearest variants.

    Args:
        reference: in the draw's state.
        draw: the draw.
        base: its lockstep pass.
        targets: what is to be explained.
        dtypes: the native's at its taps.
        low: the 16-bit dtype of the build, or of the native.
    """
    if not targets:
        return {}
    restart = FromReference(dtypes, draw.inputs)
    forwards = Forwards(reference.runner(), draw.inputs, base, restart, [t.name for t in targets])
    return nearest_variants(forwards, targets, low)
