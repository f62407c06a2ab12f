"""A session whose models are as they were loaded: what earlier calls left behind does not count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from parity.session import PairSession


@contextmanager
def fresh(session: PairSession) -> Iterator[None]:
    """Bring both models to how they were loaded; after it, the session is as before."""
    sides = (session.reference, session.native)
    learned, memories = session._learned, [side.memory for side in sides]
    assert session.reference.unused is not None
    assert session.native.unused is not None
    with session.reference.unused.restored(), session.native.unused.restored():
        session._learned = True
        for side in sides:
            side.memory = side.memory[:1]
        try:
            yield
        finally:
            session._learned = learned
            for side, memory in zip(sides, memories, strict=True):
                side.memory = memory
