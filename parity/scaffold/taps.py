"""From shared points to proposed taps: which are kept, what they are called, blocks as one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from parity.execution.tap import SAME, Layout, Point, Tap, block_name
from parity.scaffold.points import Shared
from parity.scaffold.stacks import HOLE, Index, filled, template_of
from parity.scaffold.structure import Tree
from parity.scaffold.tap_names import SPELT, after_blocks, layer_name, outside_name, plain

INNER = {"time_sinusoid", "final_modulation", "final_layer_in"}
"""Taps kept although they lie inside modules that have a tap: each is the end of a float32 island."""


@dataclass(frozen=True)
class Spec:
    """A proposed tap; inside blocks one for all of them.

    Args:
        name: of the tap, or of the layer inside a block; "" is the block's own output.
        stack: the blocks' name ("block") and templates (`blocks.{}`) on both sides; None outside.
        count: number of blocks.
        reference, native: where, block numbers left open.
        layout, text: from native to reference, and its source text.
        order: when the reference reaches it (in the first block).
        by_value: values agreed in a free run.
        replace, channel_dim, attention, heads: as of `Tap`.
        valid: the input that masks its tokens and the dim it is unsqueezed at, where only valid tokens agree.
        absent: numbers of the blocks that do not have it.
    """

    name: str
    stack: str | None
    count: int
    reference: Point
    native: Point
    layout: Layout = SAME
    text: str = ""
    order: int = 0
    by_value: bool = True
    replace: bool = True
    channel_dim: int = -1
    attention: bool | None = None
    heads: int = 0
    valid: tuple[str, int | None] | None = None
    absent: frozenset[int] = frozenset()

    def taps(self, number: int | None = None) -> Tap:
        """Return the tap itself; of one block inside blocks."""
        index: Index = () if number is None else (number,)
        name = self.name if number is None else block_of(self, number)
        here, there = (replace(p, module=filled(p.module or "", index)) for p in (self.reference, self.native))
        return Tap(
            name, here, there, self.layout, replace=self.replace, channel_dim=self.channel_dim,
            attention=self.attention, heads=self.heads, valid=None if self.valid is None else valid_of(*self.valid),
        )  # fmt: skip


def block_of(spec: Spec, number: int) -> str:
    """Return the name of a block's tap, numbers padded."""
    padded = block_name(number, spec.count).removeprefix("block")
    return f"{spec.stack}{padded}" + (f".{spec.name}" if spec.name else "")


def valid_of(name: str, dim: int | None):  # type: ignore[no-untyped-def]
    """Return the mask of valid tokens an input gives. Shapes: the input [B, S]; the mask [B, 1, S] with `dim` 1."""
    if dim is None:
        return lambda inputs: inputs[name].bool()
    return lambda inputs: inputs[name].bool().unsqueeze(dim)


def all_taps(specs: Sequence[Spec]) -> tuple[Tap, ...]:
    """Return every tap in execution order, the output last."""
    out: list[Tap] = []
    stacks = list(dict.fromkeys(spec.stack for spec in specs if spec.stack))
    done: set[str] = set()
    for spec in specs:
        if spec.stack is None:
            out.append(spec.taps())
        elif spec.stack in stacks and spec.stack not in done:
            done.add(spec.stack)
            inside = [s for s in specs if s.stack == spec.stack]
            out += [s.taps(number) for number in range(spec.count) for s in inside if number not in s.absent]
    return (*out, Tap("final_output", Point(""), Point(""), replace=False, channel_dim=1))


def specs_of(shared: Sequence[Shared], pairs: Mapping[str, str], reference: Tree, native: Tree) -> list[Spec]:
    """Return the taps to propose for points both models share, in execution order.

    `pairs` are modules that belong together; what lies inside both of a pair gets no tap.
    """
    chosen: list[Spec] = []
    kept = [(r, n) for r, n in pairs.items() if not (r.endswith(HOLE) or _holds_several(r, reference))]
    last = max((s.order for s in shared if _is_block(s, reference) and s.value is not None), default=None)
    for found in _merged(shared, reference, native):
        spec = _named(found, reference, native, last)
        if spec is None or _repeats(spec, chosen) or (_nested(spec, kept) and spec.name not in INNER):
            continue
        if spec.stack is None and spec.reference.at == "input" and spec.name in {s.name for s in chosen}:
            continue
        chosen.append(spec)
        if spec.reference.at == "output" and not found.quiet and (spec.name or spec.stack is None):
            kept.append((spec.reference.module or "", spec.native.module or ""))
    specs = _unique(_with_residuals(_in_order(chosen)))
    return [replace(s, absent=_lacking(s.reference, s, reference) | _lacking(s.native, s, native)) for s in specs]


def _lacking(point: Point, spec: Spec, tree: Tree) -> frozenset[int]:
    return frozenset(n for n in range(spec.count) if not tree.has(point.module or "", n))


def _holds_several(path: str, tree: Tree) -> bool:
    """Say whether a module only gathers others (embedders, blocks): what lies inside has taps of its own."""
    inside = [p for p in tree.paths if p.rpartition(".")[0] == path and any(True for _ in tree.paths[p].children())]
    stacks = [tree.template(stack) for stack in tree.stacks]
    return len(inside) > 1 or any(stack == path or stack.startswith(f"{path}.") for stack in stacks)


def _is_block(shared: Shared, tree: Tree) -> bool:
    return tree.template(shared.reference.module or "").endswith(HOLE) and shared.reference.at == "output"


def _merged(shared: Sequence[Shared], reference: Tree, native: Tree) -> list[Shared]:
    """Merge what is the same but for block numbers; the outermost modules first, agreeing values before structure."""
    groups: dict[tuple[object, ...], list[Shared]] = defaultdict(list)
    for s in shared:
        (r, i), (n, j) = (
            template_of(p.module or "", t.stacks) if HOLE not in (p.module or "") else (p.module or "", ())
            for p, t in ((s.reference, reference), (s.native, native))
        )
        if i[:1] == j[:1] and r.count(HOLE) == n.count(HOLE):
            key = (r, s.reference.at, s.reference.element, s.reference.call)
            both = (*key, n, s.native.at, s.native.element, s.native.call)
            groups[both].append(
                replace(s, reference=replace(s.reference, module=r), native=replace(s.native, module=n))
            )
    merged = [replace(min(g, key=lambda s: s.order), shared=any(s.shared for s in g)) for g in groups.values()]
    return sorted(merged, key=lambda s: (not s.by_value, _depth(s), s.order))


def _depth(shared: Shared) -> int:
    return (shared.reference.module or "").count(".") + (shared.native.module or "").count(".")


def _repeats(spec: Spec, chosen: Sequence[Spec]) -> bool:
    """Say whether a point of one side is in a chosen tap already."""
    if spec.by_value:
        return any(spec.reference == s.reference and spec.native == s.native for s in chosen)
    return any(_one_place(spec.reference, s.reference) or _one_place(spec.native, s.native) for s in chosen)


def _one_place(one: Point, other: Point) -> bool:
    return (one.module, one.at, one.call) == (other.module, other.at, other.call)


def _nested(spec: Spec, kept: Sequence[tuple[str, str]]) -> bool:
    r, n = spec.reference.module or "", spec.native.module or ""
    return any(r.startswith(f"{a}.") and n.startswith(f"{b}.") for a, b in kept)


def _named(found: Shared, reference: Tree, native: Tree, last: int | None) -> Spec | None:
    r, n = found.reference.module or "", found.native.module or ""
    stack, number, name = None, 0, None
    if HOLE in r:
        stack, number = _stack(r, reference, native, n)
        name = layer_name(found, r.partition(HOLE)[2].strip("."), n.partition(HOLE)[2].strip("."))
    else:
        name = outside_name(found, after_blocks(found, last))
    if name is None:
        return None
    is_input = found.reference.at == "input"
    return Spec(
        name, stack, number, found.reference, found.native, found.layout, found.text, found.order, found.by_value,
        replace=not (is_input and (found.shared or found.quiet)), channel_dim=_channel_dim(found, reference),
        attention=False if is_input and "attn" in name else None,
        heads=0 if is_input or "attn" not in name else reference.heads(r),
    )  # fmt: skip


def _stack(r: str, reference: Tree, native: Tree, n: str) -> tuple[str, int]:
    """Return what blocks of a stack are called and how many there are; `block` where a model has one stack."""
    path = r.partition(HOLE)[0].rstrip(".")
    count = min(reference.stacks.get(path, 0), native.stacks.get(n.partition(HOLE)[0].rstrip("."), 0))
    stacks = [p for p in reference.stacks if HOLE not in reference.template(p) and reference.is_deep(p)]
    own = re.sub(r"s$", "", plain(path.rpartition(".")[2]))
    return ("block" if stacks == [path] or own == "block" else own), count


def _channel_dim(found: Shared, reference: Tree) -> int:
    module = reference.paths.get(found.reference.module or "")
    channels_first = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and found.reference.at == "output"
    return 1 if channels_first else -1


# --- order ------------------------------------------------------------------------------------------------------------


def _in_order(specs: Sequence[Spec]) -> list[Spec]:
    return sorted(specs, key=lambda s: (s.order, s.reference.at == "output", -(s.reference.module or "").count(".")))


def _with_residuals(specs: Sequence[Spec]) -> list[Spec]:
    """Call the input of a norm after the branch that was added last; leave it out where none was."""
    return list(_residuals(specs))


def _residuals(specs: Sequence[Spec]) -> Iterator[Spec]:
    branch: str | None = None
    for spec in specs:
        if spec.stack is None:
            yield spec
        elif spec.name == "_residual":
            if branch is not None:
                yield replace(spec, name=f"{branch}_residual", attention=False if "attn" in branch else None)
                branch = None
        else:
            if spec.reference.at == "output" and spec.name not in ("", "modulation"):
                branch = spec.name
            yield spec


def _unique(specs: Sequence[Spec]) -> list[Spec]:
    """Give the second of two equal names its native module's name, or a number in words."""
    out: list[Spec] = []
    names: set[tuple[str | None, str]] = {(None, "final_output")}
    for spec in specs:
        inner = (spec.native.module or "").partition(HOLE)[2].strip(".").replace(".", "_")
        own = plain(inner) if inner else ""
        own = own or plain((spec.native.module or "").replace(".", "_"))
        own = own if spec.name else "second_stream"
        tail = "_in" if spec.reference.at == "input" else ""
        tries = [spec.name, own + tail, *(f"{spec.name}_{SPELT[d]}" for d in "23456789")]
        name = next(t for t in tries if (spec.stack, t) not in names)
        names.add((spec.stack, name))
        out.append(replace(spec, name=name))
    return out
