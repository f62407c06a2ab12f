"""Which modules of two models belong together, as a key map says it: those whose tensors map onto each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from parity.errors import UsageError
from parity.scaffold.proposal import Match
from parity.scaffold.record import is_quiet
from parity.scaffold.stacks import HOLE, stacks_of, template_of


@dataclass(frozen=True)
class Tree:
    """The modules of one side with block numbers left open.

    Args:
        model: the model.
        stacks: its stacks, path to number of blocks.
        paths: module paths with open block numbers, in order of registration, with the first module of that path.
    """

    model: nn.Module
    stacks: Mapping[str, int]
    paths: Mapping[str, nn.Module]

    def has(self, template: str, number: int) -> bool:
        """Say whether a block has the module of a path whose block number is left open."""
        return template.count(HOLE) != 1 or template.replace(HOLE, str(number)) in self._all

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(path for path, _ in self.model.named_modules())

    def heads(self, path: str) -> int:
        """Return the number of heads a module or one around it names, 0 where none does."""
        while path in self.paths:
            for name in ("num_heads", "heads", "n_heads", "num_attention_heads"):
                if isinstance(value := getattr(self.paths[path], name, None), int):
                    return value
            path = path.rpartition(".")[0]
        return 0

    def template(self, path: str) -> str:
        """Return a path with its block numbers left open."""
        return template_of(path, self.stacks)[0]

    def is_deep(self, stack: str) -> bool:
        """Say whether the blocks of a stack have modules of their own."""
        return any(True for _ in self.model.get_submodule(f"{stack}.0").children())

    def is_quiet(self, template: str) -> bool:
        """Say whether the module is a norm, an activation or a dropout."""
        return is_quiet(template, self.paths[template])


def tree_of(model: nn.Module) -> Tree:
    """Return the modules of a model with block numbers left open."""
    stacks = stacks_of(model)
    paths: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if path:
            paths.setdefault(template_of(path, stacks)[0], module)
    return Tree(model, stacks, paths)


def check_depths(reference: Tree, native: Tree) -> None:
    """Check that two models of one stack of blocks each have as many of them.

    Raises:
        UsageError: they do not, so no block's tensors could be matched.
    """
    mine, theirs = (
        [(p, n) for p, n in t.stacks.items() if HOLE not in t.template(p) and t.is_deep(p)] for t in (reference, native)
    )
    if len(mine) == len(theirs) == 1 and mine[0][1] != theirs[0][1]:
        raise UsageError(
            f"the reference has {mine[0][1]} blocks ({mine[0][0]}), the native {theirs[0][1]} ({theirs[0][0]})\n"
            "build both with the same number: --reference-config, --native-config"
        )


def module_pairs(matches: Iterable[Match], reference: Tree, native: Tree) -> dict[str, str]:
    """Return the outermost modules whose tensors map onto each other, reference to native.

    Norms and the like without tensors are paired in their order, where a pair of blocks has as many of them.
    """
    matches = list(matches)
    mine = _tensors_under(reference, [(m, g.template) for m in matches for g in m.reference])
    theirs = _tensors_under(native, [(m, g.template) for m in matches for g in m.native])
    pairs: dict[str, str] = {}
    for path, held in mine.items():
        same = [other for other, kept in theirs.items() if kept == held]
        alike = [other for other in same if other.endswith(HOLE) == path.endswith(HOLE)]
        if alike and held and alike[0] not in pairs.values():
            pairs[path] = alike[0]
    for path, other in list(pairs.items()):
        pairs.update(_bare(path, other, reference, native, pairs))
    return pairs


def _tensors_under(tree: Tree, held: list[tuple[Match, str]]) -> dict[str, frozenset[int]]:
    """Return the matches below each module; containers of blocks and the model itself are left out."""
    found = {}
    for path in tree.paths:
        if path not in {tree.template(stack) for stack in tree.stacks}:
            found[path] = frozenset(id(m) for m, template in held if template.startswith(f"{path}."))
    return found


def _bare(path: str, other: str, reference: Tree, native: Tree, pairs: Mapping[str, str]) -> dict[str, str]:
    mine = [p for p in _children(path, reference) if p not in pairs and _is_bare_norm(reference, p)]
    theirs = [p for p in _children(other, native) if p not in pairs.values() and _is_bare_norm(native, p)]
    return dict(zip(mine, theirs, strict=True)) if len(mine) == len(theirs) else {}


def _children(path: str, tree: Tree) -> list[str]:
    return [p for p in tree.paths if p.rpartition(".")[0] == path]


def _is_bare_norm(tree: Tree, path: str) -> bool:
    module = tree.paths[path]
    return not any(True for _ in module.parameters()) and "norm" in type(module).__name__.lower()
