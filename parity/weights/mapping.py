"""Take over an existing FastVideo-style `param_names_mapping`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from parity.errors import KeyMapError
from parity.weights.rule import Route

Replacement = str | tuple[str, int, int] | list[str]
"""A name, (name, index, count) for one of count fused parts, or names a tensor is split into along dim 0."""


def resolver(mapping: Mapping[str, Replacement], chained: bool) -> Callable[[str], tuple[Route, ...]]:
    """Return the function from a reference key to its routes.

    Raises:
        KeyMapError: a replacement is none of the three forms.
    """
    for pattern, replacement in mapping.items():
        _check(pattern, replacement)

    def resolve(key: str) -> tuple[Route, ...]:
        left = dict(mapping)
        route: tuple[Route, ...] = (Route(key),)
        while len(route) == 1:
            pattern = next((p for p in left if re.match(p, route[0].native)), None)
            if pattern is None:
                return route
            route = _replaced(pattern, left.pop(pattern), route[0])
            if not chained:
                return route
        return route

    return resolve


def _check(pattern: str, replacement: Replacement) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise KeyMapError(f"{pattern!r} is no regular expression: {error}") from error
    named = isinstance(replacement, str | list)
    if not named and not (isinstance(replacement, tuple) and len(replacement) == 3):
        raise KeyMapError(f"{pattern!r} maps to {replacement!r}; valid: name, (name, index, count) or list of names")


def _replaced(pattern: str, replacement: Replacement, route: Route) -> tuple[Route, ...]:
    try:
        if isinstance(replacement, str):
            return (Route(re.sub(pattern, replacement, route.native), route.part, route.parts),)
        if isinstance(replacement, tuple):
            return (Route(re.sub(pattern, replacement[0], route.native), replacement[1], replacement[2]),)
        names = [re.sub(pattern, name, route.native) for name in replacement]
    except re.error as error:
        raise KeyMapError(f"mapping {pattern!r} to {replacement!r}: {error}") from error
    return tuple(Route(name, cut=cut, cuts=len(names)) for cut, name in enumerate(names))
