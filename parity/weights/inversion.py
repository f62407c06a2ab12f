r"""Turn a rule round: pattern to template and back, for patterns of literals and simple groups."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from parity.errors import KeyMapError
from parity.weights.rule import Permute, Rule

_TOKEN = re.compile(r"\\(\d)|\\g<(\d+)>|(\((?!\?)(?:[^()\\]|\\.)*\))|\\([^\w\s])|([^\\()\[\]{}*+?.|^$])|(.)", re.S)
_KINDS = {"split": "fuse", "fuse": "split", "reference_only": "native_only", "native_only": "reference_only"}


def inverted(rule: Rule) -> Rule:
    """Return the rule from native to reference.

    Raises:
        KeyMapError: the pattern is more than literals and groups, or the template drops a group.
    """
    if rule.kind == "mapped" or rule.reshape:
        raise KeyMapError(f"{rule} cannot be inverted by keys; plan(...).reference_tensors(native) goes back by shapes")
    if rule.kind.endswith("_only"):
        return Rule(_KINDS[rule.kind], rule.patterns, reason=rule.reason)  # type: ignore[arg-type]
    turned = [[_turned(rule, pattern, to) for to in rule.to] for pattern in rule.patterns]
    patterns = tuple(dict.fromkeys(pattern for row in turned for pattern, _ in row))
    to = tuple(dict.fromkeys(template for row in turned for _, template in row))
    permute = None if rule.permute is None else _inverse(rule.permute)
    kind = _KINDS.get(rule.kind, rule.kind)
    out = replace(rule, kind=kind, patterns=patterns, to=to, permute=permute)  # type: ignore[arg-type]
    if rule.transpose and permute is not None:
        raise KeyMapError(f"{rule}: transposed and permuted, its inverse would permute columns")
    return out


def _inverse(permute: Permute) -> Permute:
    def turned(n: int) -> list[int]:
        order = list(permute(n))
        if len(order) != n:
            raise KeyMapError("rows are repeated: no inverse by keys; plan(...).reference_tensors(native) goes back")
        return [int(row) for row in torch.argsort(torch.tensor(order))]

    return turned


def _turned(rule: Rule, pattern: str, template: str) -> tuple[str, str]:
    literals, groups = _parsed(rule, pattern)
    order: list[int] = []
    new_pattern = "".join(_as_pattern(rule, found, groups, order) for found in _TOKEN.finditer(template))
    if len(order) < len(groups):
        raise KeyMapError(f"{rule}: {template!r} drops a group of {pattern!r}, so it cannot be inverted")
    template = "".join(f"\\{order.index(number) + 1}" if text is None else text for text, number in literals)
    return new_pattern, template


def _parsed(rule: Rule, pattern: str) -> tuple[list[tuple[str | None, int]], list[str]]:
    literals: list[tuple[str | None, int]] = []
    groups: list[str] = []
    for found in _TOKEN.finditer(pattern.removeprefix("^").removesuffix("$")):
        _, _, group, escaped, plain, _ = found.groups()
        if group:
            groups.append(group)
            literals.append((None, len(groups)))
        elif escaped or plain:
            literals.append((escaped or plain, 0))
        else:
            raise KeyMapError(f"{rule}: no inverse, {found[0]!r} in {pattern!r} is no literal or simple group")
    return literals, groups


def _as_pattern(rule: Rule, found: re.Match[str], groups: list[str], order: list[int]) -> str:
    number = int(found[1] or found[2] or 0)
    if not number:
        return re.escape(found[4] or found[0])
    if number > len(groups):
        raise KeyMapError(f"{rule}: the template names group {number}, the pattern has {len(groups)}")
    if number in order:
        return f"\\{order.index(number) + 1}"
    order.append(number)
    return groups[number - 1]
