"""Key maps: from reference to native keys, total both ways, never dropping a tensor in silence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from parity.errors import KeyMapError
from parity.weights.coverage import Draft, problems_of
from parity.weights.explicit import placed
from parity.weights.inversion import inverted
from parity.weights.join import joined
from parity.weights.mapping import Replacement, resolver
from parity.weights.piece import Piece, Source, assemble
from parity.weights.plan import KeyPlan, Shapes
from parity.weights.probe import Converter, probed
from parity.weights.rule import Route, Rule, fuse, mapped, native_only, reference_only, rename, split

__all__ = [
    "KeyMap", "KeyPlan", "Piece", "Rule", "Source", "fuse", "native_only", "reference_only", "rename", "split",
]  # fmt: skip


@dataclass(frozen=True)
class KeyMap:
    r"""Ordered rules from reference to native keys; the first rule that matches a key wins.

    >>> import torch
    >>> key_map = KeyMap((rename(r"(.+)\.qkv", r"\1.to_qkv"),))
    >>> list(key_map.native_tensors({"blocks.0.qkv": torch.zeros(2)}))
    ['blocks.0.to_qkv']
    """

    rules: tuple[Rule, ...] = ()
    function: Converter | None = None
    pieces: tuple[Piece, ...] = ()

    @classmethod
    def from_function(cls, fn: Converter, *declared: Rule) -> KeyMap:
        """Wrap a converter function from state dict to state dict; `declared` holds `*_only` rules.

        Its cuts, joins, transposes and row orders are read off by running it on tensors of element numbers.
        """
        return cls(declared, fn)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Replacement], *declared: Rule, chained: bool = False) -> KeyMap:
        """Take over a FastVideo `param_names_mapping`: regex to name, or to (name, index, count) for fused parts.

        As there, the first match wins and a key without a match keeps its name; `chained` matches the result again.
        """
        return cls((*declared, mapped(resolver(mapping, chained))))

    @classmethod
    def from_pieces(cls, pieces: Iterable[Piece], *rules: Rule) -> KeyMap:
        """Take pieces one by one, as matching by value finds them; the rules are for the other keys."""
        return cls(rules, pieces=tuple(pieces))

    def native_tensors(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map a state dict by keys alone, views where possible; `reshape` needs shapes, see `KeyPlan`.

        Raises:
            KeyMapError: a key no rule matches, a native key produced twice or in part.
        """
        draft = self.draft({key: value.shape for key, value in reference.items()})
        _raise(problems_of(draft, None, {}))
        if self.function is not None:
            return dict(self.function({k: v for k, v in reference.items() if k not in draft.reference_only}))
        return {key: assemble(parts, reference) for key, parts in draft.pieces.items()}

    def plan(self, reference: Shapes, native: Shapes) -> KeyPlan:
        """Work the map out for the shapes of both sides.

        Raises:
            KeyMapError: what is unmatched, produced twice, never produced or mis-shaped, with the nearest names.
        """
        draft = self.draft(reference)
        declared = {k: r.reason for k in native for r in self.rules if r.kind == "native_only" and r.matches(k)}
        _raise(problems_of(draft, native, declared))
        unused = tuple(rule for rule in self.rules if not any(map(rule.matches, (*reference, *native))))
        shapes = {key: native[key] for key in draft.pieces}
        return KeyPlan(draft.pieces, shapes, reference, draft.reference_only, declared, unused)

    def check(self, reference: Shapes, native: Shapes) -> None:
        """Work the plan out and discard it.

        Raises:
            KeyMapError: as `plan`.
        """
        self.plan(reference, native)

    def invert(self) -> KeyMap:
        """Return the map from native to reference keys, where patterns are literals and simple groups.

        Raises:
            KeyMapError: a rule loses what the way back needs; `KeyPlan.reference_tensors` goes back by shapes.
        """
        if self.function is not None:
            raise KeyMapError("a converter function has no inverse; plan(...).reference_tensors(native) goes back")
        if self.pieces:
            raise KeyMapError("pieces have no inverse by keys; plan(...).reference_tensors(native) goes back by shapes")
        return KeyMap(tuple(inverted(rule) for rule in self.rules))

    def _rule_for(self, key: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.kind != "native_only" and rule.matches(key)), None)

    def draft(self, shapes: Shapes) -> Draft:
        """Return what becomes of the reference's tensors before the native's are looked at; nothing is raised."""
        rules = {key: self._rule_for(key) for key in shapes}
        only = {key: rule.reason for key, rule in rules.items() if rule and rule.kind == "reference_only"}
        if self.function is not None:
            pieces = probed(self.function, {key: shape for key, shape in shapes.items() if key not in only})
            used = {piece.reference for parts in pieces.values() for piece in parts}
            return Draft(pieces, only, [key for key in shapes if key not in used and key not in only], {}, shapes)
        broken: dict[str, str] = {}
        explicit = placed(self.pieces, shapes, broken)
        held = {piece.reference for piece in self.pieces}
        rules = {key: rule for key, rule in rules.items() if key not in held}
        routed: dict[str, list[tuple[Route, str]]] = defaultdict(list)
        for key, rule in rules.items():
            for route in rule.routes(key) if rule else ():
                routed[route.native].append((route, key))
        drafted = {native: joined(native, routes, shapes, broken) for native, routes in routed.items()}
        broken.update({native: f"{native!r} is produced twice" for native in explicit.keys() & drafted.keys()})
        pieces = {**explicit, **{native: parts for native, parts in drafted.items() if parts}}
        return Draft(pieces, only, [key for key, rule in rules.items() if rule is None], broken, shapes)


def _raise(problems: list[str]) -> None:
    if problems:
        raise KeyMapError("\n".join(problems))
