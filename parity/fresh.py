"""A session whose models are as they were loaded: what earlier calls left behind does not count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

from parity.execution.module_state import ModuleState
from parity.execution.tap import Inputs
from parity.loaded import LoadedSide
from parity.lora.adapter import LoraAdapter
from parity.session import PairSession


@contextmanager
def fresh(
    session: PairSession, lora: bool = False, earlier: Sequence[Inputs] = (), adapter: LoraAdapter | None = None
) -> Iterator[PairSession]:
    """Open a view of a session in which every pass finds the models as they were loaded; then all is as before.

    Args:
        session: both models, resident; no LoRA on.
        lora: whether the LoRA is on meanwhile.
        earlier: calls that each pass makes before the one that counts.
        adapter: another LoRA than the pair's, in the reference's module names.
    """
    sides = session.reference, session.native
    view = copy(session)
    view._live, view._native = reference, native = [_without_calls(side, earlier) for side in sides]
    view._native_stage = None
    view.__dict__.pop("reference_stage", None)
    if adapter is not None:
        view.__dict__.pop("native_adapter", None)
        view.__dict__["adapter"] = adapter
    assert reference.unused is not None
    assert native.unused is not None
    with reference.unused.restored(), native.unused.restored(), view.lora(lora):
        for side in (reference, native):
            side.unused = ModuleState(side.model)  # a LoRA is part of it
        yield view


@contextmanager
def fresh_side(side: LoadedSide) -> Iterator[LoadedSide]:
    """Open a view of one side in which every pass finds the model as it was loaded; then all is as before."""
    held = _without_calls(side, ())
    assert held.unused is not None
    with held.unused.restored():
        held.unused = ModuleState(held.model)
        yield held


def _without_calls(side: LoadedSide, earlier: Sequence[Inputs]) -> LoadedSide:
    return replace(side, memory=side.memory[:1], earlier=tuple(earlier))
