"""What is proposed for a key map: rules with their evidence, and what nothing decides."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from parity.scaffold.stacks import HOLE, Group
from parity.weights.keymap import KeyMap
from parity.weights.rule import Rule, fuse, native_only, reference_only, rename, split


@dataclass(frozen=True)
class Match:
    """Reference tensors and the native tensors they become.

    Args:
        kind: the rule it takes.
        reference, native: one group each, several on the side that holds the parts.
        evidence: what speaks for it.
        certain: False where only the order or an elimination does: to be confirmed by a run, or left blank.
        transpose, reshape: what is done to the tensor.
    """

    kind: Literal["rename", "split", "fuse"]
    reference: tuple[Group, ...]
    native: tuple[Group, ...]
    evidence: str
    certain: bool = True
    transpose: bool = False
    reshape: bool = False


@dataclass(frozen=True)
class Line:
    """One rule of the proposal: as a rule, as source text, and why."""

    rule: Rule
    text: str
    evidence: str


@dataclass
class KeyProposal:
    """A proposed key map.

    Args:
        matches: what is proposed.
        reference_blank, native_blank: what has no proposal.
        reference_ties, native_ties: keys that are another key's memory, with that key.
        existing: a map taken from a mapping or converter, with its source text; `matches` then only pair tensors.
        problems: what an existing map leaves open, in words.
        suggested: what names say of native tensors an existing map does not produce.
        idle: tensors without a proposal whose layer no forward of the trial called.
    """

    matches: list[Match] = field(default_factory=list)
    reference_blank: list[Group] = field(default_factory=list)
    native_blank: list[Group] = field(default_factory=list)
    reference_ties: dict[str, str] = field(default_factory=dict)
    native_ties: dict[str, str] = field(default_factory=dict)
    existing: tuple[KeyMap, str] | None = None
    problems: list[str] = field(default_factory=list)
    suggested: list[Match] = field(default_factory=list)
    idle: frozenset[Group] = frozenset()

    @property
    def is_total(self) -> bool:
        """Whether every tensor of both sides has a proposal."""
        return not (self.reference_blank or self.native_blank or self.problems)

    def lines(self) -> list[Line]:
        """Return the rules, those of one layer's weight and bias as one."""
        together: dict[tuple[object, ...], list[Match]] = defaultdict(list)
        for match in sorted(self.matches, key=lambda m: m.reference[0].order):
            leaves = {group.leaf for group in (*match.reference, *match.native)}
            owners = tuple(g.owner for g in match.reference), tuple(g.owner for g in match.native)
            alone = None if len(leaves) == 1 else match
            together[match.kind, owners, match.transpose, match.reshape, alone].append(match)
        ties = [_tied(reference_only, key, owner) for key, owner in self.reference_ties.items()]
        ties += [_tied(native_only, key, owner) for key, owner in self.native_ties.items()]
        return [_line(matches) for matches in together.values()] + ties

    def blanks(self) -> list[Line]:
        """Return declarations that make the map total while blanks are open: only for a trial run."""
        lines = [_only(reference_only, group) for group in self.reference_blank]
        return lines + [_only(native_only, group) for group in self.native_blank]

    def key_map(self, *, trial: bool = False) -> KeyMap:
        """Return the proposal as a key map; for a trial run with everything blank declared."""
        lines = self.lines() + (self.blanks() if trial else [])
        usable = self.existing is not None and not self.problems
        return self.existing[0] if self.existing and usable else KeyMap(tuple(line.rule for line in lines))


def pattern_of(groups: Sequence[Group]) -> str:
    """Return the regular expression for keys of one owner: its leaves as alternatives, its block numbers as groups.

    Groups whose name exists in several shapes name their block numbers.
    """
    first = groups[0]
    owner = re.escape(first.owner.replace(HOLE, "\0")).replace("\0", _numbers(first))
    leaves = list(dict.fromkeys(group.leaf for group in groups))
    leaf = f"({'|'.join(map(re.escape, leaves))})" if len(leaves) > 1 else re.escape(leaves[0])
    return rf"{owner}\.{leaf}" if first.owner else leaf


def _numbers(group: Group) -> str:
    contiguous = group.template.count(HOLE) != 1 or group.indices == tuple((i,) for i in range(len(group.indices)))
    return r"(\d+)" if contiguous else f"({'|'.join(str(index[0]) for index in group.indices)})"


def template_text(groups: Sequence[Group]) -> str:
    r"""Return the template of what keys become, its groups numbered."""
    parts = groups[0].owner.split(HOLE)
    owner = parts[0] + "".join(rf"\{n}{part}" for n, part in enumerate(parts[1:], 1))
    several = len({group.leaf for group in groups}) > 1
    leaf = rf"\{len(parts)}" if several else groups[0].leaf
    return f"{owner}.{leaf}" if groups[0].owner else leaf


def _line(matches: Sequence[Match]) -> Line:
    first = matches[0]
    patterns = [pattern_of([m.reference[i] for m in matches]) for i in range(len(first.reference))]
    templates = [template_text([m.native[i] for m in matches]) for i in range(len(first.native))]
    flags = [name for name in ("transpose", "reshape") if getattr(first, name)]
    evidence = _together([match.evidence for match in matches])
    if first.kind == "rename":
        words = "".join(f", {name}=True" for name in flags)
        text = f"rename({_quoted(patterns[0])}, {_quoted(templates[0])}{words})"
        rule = rename(patterns[0], templates[0], transpose=first.transpose, reshape=first.reshape)
        return Line(rule, text, evidence)
    if first.kind == "split":
        sizes = _sizes(first.native)
        text = f"split({_quoted(patterns[0])}, {_listed(templates)}{_sized(sizes)})"
        return Line(split(patterns[0], tuple(templates), sizes=sizes), text, evidence)
    sizes = _sizes(first.reference)
    text = f"fuse({_listed(patterns)}, {_quoted(templates[0])}{_sized(sizes)})"
    return Line(fuse(tuple(patterns), templates[0], sizes=sizes), text, evidence)


def _together(evidence: Sequence[str]) -> str:
    """Join what speaks for a layer's tensors; of several shares of equal names the least."""
    named = sorted(words for words in evidence if words.startswith("names"))
    return "; ".join(dict.fromkeys([words for words in evidence if words not in named] + named[:1]))


def _sizes(parts: Iterable[Group]) -> tuple[int, ...] | None:
    rows = tuple(group.shape[0] for group in parts)
    return None if len(set(rows)) == 1 else rows


def _sized(sizes: tuple[int, ...] | None) -> str:
    return "" if sizes is None else f", sizes={sizes}"


def tied(key: str, owner: str) -> Line:
    """Return the declaration of a reference key that is another key's memory."""
    return _tied(reference_only, key, owner)


def _tied(make: object, key: str, owner: str) -> Line:
    reason = f"tied to {owner}"
    rule = reference_only if make is reference_only else native_only
    pattern = re.escape(key)
    return Line(rule(pattern, reason), f'{rule.__name__}({_quoted(pattern)}, "{reason}")', "the same memory")


def _only(make: object, group: Group) -> Line:
    rule = reference_only if make is reference_only else native_only
    pattern = pattern_of([group])
    return Line(rule(pattern, "blank"), f'{rule.__name__}({_quoted(pattern)}, "why")', "")


def _quoted(text: str) -> str:
    return f'r"{text}"' if "\\" in text else f'"{text}"'


def _listed(texts: Sequence[str]) -> str:
    return f"({', '.join(map(_quoted, texts))})"
