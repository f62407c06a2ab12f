"""Exact values of tables that live outside any model: in a module-level cache, or made when a module was imported.

Such a table outlives the session that saw it made. The next session of the process (another dtype, another pair of the
same code, a model that was let go and loaded again), or the other side of a port that kept the original's helper, only
finds its rounded values; so they are kept here, for as long as the table itself is alive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parity.execution.roots import EXACT_ABOVE, roots_of
from parity.execution.storage import Entry, ShadowTable

_HELD = ShadowTable()


def keep_outside(table: ShadowTable, model: nn.Module, inputs: Any = None) -> bool:
    """Keep what a call or a build made and neither the model nor the inputs hold.

    Args:
        table: the shadows of the call.
        model: the model that was called.
        inputs: what it was called with.

    Returns:
        Whether there was any: calls with other shapes may then make more.
    """
    own = {t.untyped_storage()._cdata for t in roots_of(model, inputs)}
    found = [(key, entry) for key, entry in list(table.entries.items()) if key not in own]
    kept = [_keep(key, entry) for key, entry in found]  # every one, before anyone asks whether there was any
    return any(kept)


def outside() -> ShadowTable:
    """Return what is kept, without tables that someone has written since."""
    with torch.no_grad():
        for key, entry in list(_HELD.entries.items()):
            whole = _whole(entry)
            if whole is None or entry.low is None or not torch.equal(whole, entry.low):
                _HELD.entries.pop(key, None)
    return _HELD


def _keep(key: int, entry: Entry) -> bool:
    whole = _whole(entry)
    if whole is None or entry.flat is None or whole.numel() > EXACT_ABOVE or bool(entry.flat.isnan().any()):
        return False
    if key not in _HELD.entries:
        kept = _HELD.new(whole)
        kept.low, kept.flat = whole.clone(), entry.flat
        kept.shared = entry.shared = True
    return True


def _whole(entry: Entry) -> Tensor | None:
    """Return all real scalars of a storage [n], None where it is gone."""
    storage = None if entry.watch is None else entry.watch()
    if storage is None:
        return None
    scalars = storage.nbytes() // entry.low_dtype.itemsize
    return torch.empty(0, dtype=entry.low_dtype, device=storage.device).set_(storage, 0, (scalars,), (1,))
