"""What is felt of the differences found: their impacts, jointly per kind of tap and alone for the first few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parity.draws import Draw
from parity.execution.passes import OUTPUT
from parity.numerics.limits import Limits
from parity.numerics.verdict import Judged, TapFacts, settle
from parity.stage import JudgedSession, Nudge, Options


def settle_impacts(
    session: JudgedSession, judged: dict[str, Judged], facts: Sequence[TapFacts], draw: Draw, limits: Limits,
    options: Options,
) -> None:  # fmt: skip
    """Compute impacts jointly per kind of tap, and alone for the first few, and settle felt or drowned."""
    different = [f for f in facts if judged[f.name].different]
    if not different:
        return
    taps = {t.name: t for t in session.taps}
    groups: list[list[str]] = []
    for kind in dict.fromkeys(f.kind for f in different):
        members = [f.name for f in different if f.kind == kind]
        if all(taps[n].replace or n == OUTPUT for n in members):
            groups.append(members)
        else:
            for name in members:
                settle(judged[name], None, limits)
    requests = [request for members in groups for request in _requests(members, options.singles)]
    nudges = [[Nudge(taps[n], draw.delta(taps[n])) for n in request] for request in requests]
    found = session.reference_stage.impacts(draw.of, nudges) if requests else []
    unknown: list[float | None] = [None] * len(requests)
    impacts = dict(zip(requests, found or unknown, strict=True))
    for members in groups:
        _settle_kind(judged, members, impacts, limits, options.singles)


def _requests(members: Sequence[str], singles: int) -> list[tuple[str, ...]]:
    """Return which taps of a kind are nudged together: all of them, then the first few alone."""
    alone = [(name,) for name in members[:singles]] if len(members) > 1 else []
    return [tuple(members), *alone]


def _settle_kind(
    judged: dict[str, Judged], members: Sequence[str], impacts: Mapping[tuple[str, ...], float | None], limits: Limits,
    singles: int,
) -> None:  # fmt: skip
    joint = impacts[tuple(members)]
    if joint is None:
        for name in members:
            settle(judged[name], None, limits)
        return
    for number, name in enumerate(members):
        alone = impacts.get((name,)) if number < singles else None
        how = f"; {joint:.2g} jointly over {len(members)} taps of its kind" if len(members) > 1 else ""
        settle(judged[name], max(joint if alone is None else alone, joint), limits, how)
