"""Rules of a key map: what one reference key becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from parity.errors import KeyMapError

Permute = Callable[[int], Sequence[int]]
"""From the number of rows n of dim 0 to n row numbers: native row i is reference row `permute(n)[i]`."""


@dataclass(frozen=True)
class Route:
    """One native key a reference key goes to: part `part` of `parts` there, slice `cut` of `cuts` here."""

    native: str
    part: int = 0
    parts: int = 1
    cut: int = 0
    cuts: int = 1
    dim: int = 0
    sizes: tuple[int, ...] | None = None
    transpose: bool = False
    permute: Permute | None = None
    reshape: bool = False


@dataclass(frozen=True)
class Rule:
    r"""One rule; made by `rename`, `split`, `fuse`, `reference_only`, `native_only` or `mapped`.

    Args:
        kind: which of them made it.
        patterns: regular expressions a key must match in full; several for `fuse`, in the order of the parts.
        to: templates of native keys with `\1` groups; several for `split`, in the order of the parts.
        dim, sizes: along which dim it is cut or joined, and the sizes of the parts (equal parts when None).
        transpose, permute, reshape: what else is done to the tensor.
        reason: why a side lacks the key.
        resolve: from a key to its routes, for `mapped`.
    """

    kind: Literal["rename", "split", "fuse", "reference_only", "native_only", "mapped"]
    patterns: tuple[str, ...]
    to: tuple[str, ...] = ()
    dim: int = 0
    sizes: tuple[int, ...] | None = None
    transpose: bool = False
    permute: Permute | None = None
    reshape: bool = False
    reason: str = ""
    resolve: Callable[[str], tuple[Route, ...]] | None = None

    def __post_init__(self) -> None:
        parts = max(len(self.patterns), len(self.to), 1)
        if self.sizes is not None and len(self.sizes) != parts:
            raise KeyMapError(f"{self}: {len(self.sizes)} sizes for {parts} parts")
        if self.kind in ("split", "fuse") and parts < 2:
            raise KeyMapError(f"{self}: needs at least two parts, got {parts}; use rename")
        if self.kind.endswith("_only") and not self.reason:
            raise KeyMapError(f"{self}: needs a reason, which the report shows")
        groups = [self._compiled(pattern).groups for pattern in self.patterns]
        if len(set(groups)) > 1:
            raise KeyMapError(f"{self}: the patterns of one fuse need the same groups, got {groups}")

    def __str__(self) -> str:
        return f"{self.kind}({' + '.join(self.patterns)})"

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern)
        except re.error as error:
            raise KeyMapError(f"{self.kind}: {pattern!r} is no regular expression: {error}") from error

    def matches(self, key: str) -> bool:
        """Whether one of the patterns matches the whole key."""
        return any(re.fullmatch(pattern, key) for pattern in self.patterns)

    def routes(self, key: str) -> tuple[Route, ...]:
        """Return where the key goes; empty for `reference_only`.

        Raises:
            KeyMapError: a template names a group its pattern lacks.
        """
        if self.resolve is not None:
            return self.resolve(key)
        found, part = self._match(key)
        return tuple(self._route(expand(found, to), part, cut) for cut, to in enumerate(self.to))

    def _match(self, key: str) -> tuple[re.Match[str], int]:
        found = ((re.fullmatch(pattern, key), part) for part, pattern in enumerate(self.patterns))
        return next((match, part) for match, part in found if match is not None)

    def _route(self, native: str, part: int, cut: int) -> Route:
        return Route(native, part, len(self.patterns), cut, len(self.to), self.dim, self.sizes,
                     self.transpose, self.permute, self.reshape)  # fmt: skip


def expand(found: re.Match[str], template: str) -> str:
    r"""Fill the `\1` groups of a template.

    Raises:
        KeyMapError: the pattern lacks a group the template names.
    """
    try:
        return found.expand(template)
    except (re.error, IndexError) as error:
        raise KeyMapError(f"template {template!r} does not fit pattern {found.re.pattern!r}: {error}") from error


def rename(
    pattern: str, to: str, *, transpose: bool = False, permute: Permute | None = None, reshape: bool = False
) -> Rule:
    r"""Give a key another name, and optionally its tensor transposed, its rows permuted (in that order) or reshaped.

    >>> rename(r"blocks\.(\d+)\.(.+)", r"layers.\1.\2").routes("blocks.7.bias")[0].native
    'layers.7.bias'
    """
    return Rule("rename", (pattern,), (to,), transpose=transpose, permute=permute, reshape=reshape)


def split(pattern: str, to: tuple[str, ...], *, dim: int = 0, sizes: tuple[int, ...] | None = None) -> Rule:
    """Cut one reference tensor along `dim` into several native ones, equal parts unless sizes are given."""
    return Rule("split", (pattern,), to, dim=dim, sizes=sizes)


def fuse(patterns: tuple[str, ...], to: str, *, dim: int = 0, sizes: tuple[int, ...] | None = None) -> Rule:
    """Join several reference tensors along `dim` into one native; patterns in the order of the parts.

    `sizes`, where given, is checked and makes the rule invertible for unequal parts.
    """
    return Rule("fuse", patterns, (to,), dim=dim, sizes=sizes)


def reference_only(pattern: str, reason: str) -> Rule:
    """Declare reference keys the native has no use for; the reason is reported."""
    return Rule("reference_only", (pattern,), reason=reason)


def native_only(pattern: str, reason: str) -> Rule:
    """Declare native keys the reference does not have; the reason is reported."""
    return Rule("native_only", (pattern,), reason=reason)


def mapped(resolve: Callable[[str], tuple[Route, ...]]) -> Rule:
    """Send every key through a function from key to routes."""
    return Rule("mapped", ("(?s:.*)",), resolve=resolve)
