"""Stacks of equal blocks, and names with the block number left open: `blocks.{}.attn.qkv.weight`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Index = tuple[int, ...]
HOLE = "{}"


@dataclass(frozen=True)
class Group:
    """The tensors of one side whose keys differ in block numbers only.

    Args:
        template: their key, block numbers left open.
        indices: the block numbers there are; one empty tuple outside stacks.
        shape: of each of them.
        order: place in the state dict.
        side: "reference" or "native"; the same name on both sides is two groups.
    """

    template: str
    indices: tuple[Index, ...]
    shape: torch.Size
    order: int
    side: str

    @property
    def owner(self) -> str:
        """The module that holds the tensor."""
        return self.template.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """The tensor's own name: `weight`, `bias`, `scale_shift_table`."""
        return self.template.rpartition(".")[2]

    @property
    def keys(self) -> list[str]:
        """The keys themselves, in the order of the block numbers."""
        return [filled(self.template, index) for index in self.indices]


def filled(template: str, index: Index) -> str:
    """Put block numbers into a template.

    >>> filled("blocks.{}.attn", (7,))
    'blocks.7.attn'
    """
    return template.format(*index)


def stacks_of(model: nn.Module) -> dict[str, int]:
    """Return the containers of equal blocks by path, with the number of blocks.

    A list of layers of one class counts; a `Sequential` only where its members have members, so that the linear
    layers of an MLP are never taken for blocks.
    """
    found = {}
    for path, module in model.named_modules():
        children = list(module.named_children())
        numbered = [name for name, _ in children] == [str(i) for i in range(len(children))]
        one_class = len({type(child) for _, child in children}) == 1
        nested = all(any(True for _ in child.children()) for _, child in children)
        if len(children) > 1 and numbered and one_class and (nested or isinstance(module, nn.ModuleList)):
            found[path] = len(children)
    return found


def template_of(path: str, stacks: Mapping[str, int]) -> tuple[str, Index]:
    """Return a dotted name with its block numbers left open, and the numbers.

    >>> template_of("blocks.7.mlp.0", {"blocks": 12})
    ('blocks.{}.mlp.0', (7,))
    """
    out, index, walked = [], [], ""
    for part in path.split("."):
        is_number = walked in stacks and part.isdigit()
        out.append(HOLE if is_number else part)
        index += [int(part)] if is_number else []
        walked = f"{walked}.{part}" if walked else part
    return ".".join(out), tuple(index)


def groups_of(tensors: Mapping[str, Tensor], stacks: Mapping[str, int], side: str) -> list[Group]:
    """Group the tensors of one side; tensors of one name and different shapes are groups of their own.

    What only one block has keeps its number.
    """
    found: dict[tuple[str, torch.Size], list[Index]] = defaultdict(list)
    order: dict[tuple[str, torch.Size], int] = {}
    for number, (key, value) in enumerate(tensors.items()):
        template, index = template_of(key, stacks)
        found[template, value.shape].append(index)
        order.setdefault((template, value.shape), number)
    groups = [Group(t, tuple(sorted(indices)), shape, order[t, shape], side) for (t, shape), indices in found.items()]
    return [g if len(g.indices) > 1 else Group(g.keys[0], ((),), g.shape, g.order, side) for g in groups]
