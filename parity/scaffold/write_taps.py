"""The taps of a pair file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parity.execution.passes import OUTPUT
from parity.scaffold.lines import BLANK, WIDTH, comment
from parity.scaffold.propose import Proposal, agrees
from parity.scaffold.stacks import HOLE
from parity.scaffold.taps import Spec, block_of


def tap_lines(proposal: Proposal) -> Iterator[str]:
    """Yield the functions that return the taps."""
    specs = proposal.taps
    stacks = {spec.stack: spec.count for spec in specs if spec.stack}
    for stack, count in stacks.items():
        yield from ["", "", f"{stack.upper()}S = {count}"]
        yield '"""How many of them the models above have."""'
    if absent := [block_of(s, n) for s in specs if s.stack for n in sorted(s.absent)]:
        yield from ["", "ABSENT = (", *(f'    "{name}",' for name in absent), ")"]
        yield '"""Taps of layers that a block does not have."""'
    yield from ["", "", "def _taps(build: Build) -> tuple[Tap, ...]:"]
    yield '    """Return the taps in execution order."""'
    yield "    return ("
    done: set[str] = set()
    for spec in specs:
        if spec.stack is None:
            yield from _tap(spec, proposal, '"' + spec.name + '"', 8)
        elif spec.stack not in done:
            done.add(spec.stack)
            some = any(s.absent for s in specs if s.stack == spec.stack)
            yield from _all_blocks(spec.stack, *["if tap.name not in ABSENT"] * some)
    final = ['"final_output"', 'Point("")', 'Point("")', "replace=False", "channel_dim=1"]
    yield from _lines(final, _judged(proposal, [OUTPUT], True), 8)
    yield "    )"
    for stack in stacks:
        yield from _stack_taps(stack, [s for s in specs if s.stack == stack], proposal)


def _all_blocks(stack: str, *condition: str) -> Iterator[str]:
    """Yield the line with the taps of all blocks, or several where it is too long."""
    parts = ["tap", f"for index in range({stack.upper()}S)", f"for tap in _{stack}_taps(index)", *condition]
    line = f"        *({' '.join(parts)}),"
    several = ["        *(", *(f"            {part}" for part in parts), "        ),"]
    yield from [line] if len(line) <= WIDTH else several


def _stack_taps(stack: str, specs: Sequence[Spec], proposal: Proposal) -> Iterator[str]:
    yield from ["", "", f"def _{stack}_taps(index: int) -> tuple[Tap, ...]:"]
    yield f'    """Return the taps of one {stack.replace("_", " ")}."""'
    number = f"block_name(index, {stack.upper()}S)"
    own = number if stack == "block" else f'{number}.replace("block", "{stack}")'
    yield f"    name = {own}"
    yield "    return ("
    for spec in specs:
        yield from _tap(spec, proposal, f'f"{{name}}.{spec.name}"' if spec.name else "name", 8)
    yield "    )"


def _tap(spec: Spec, proposal: Proposal, name: str, indent: int) -> Iterator[str]:
    names = [spec.name] if spec.stack is None else [block_of(spec, i) for i in range(spec.count)]
    parts = [name, _point(spec, 0), _point(spec, 1), *_options(spec)]
    yield from _lines(parts, _judged(proposal, names, spec.by_value), indent)


def _lines(parts: Sequence[str], evidence: str, indent: int) -> Iterator[str]:
    """Yield a tap with its evidence behind it, or above where it is too long."""
    pad, line = " " * indent, f"Tap({', '.join(parts)}),"
    behind = f"{pad}{line}  # {evidence}" if evidence else pad + line
    if len(behind) <= WIDTH:
        yield behind
        return
    yield from comment(evidence, indent)
    if len(pad + line) <= WIDTH:
        yield pad + line
    else:
        yield from [f"{pad}Tap(", *(f"{pad}    {part}," for part in parts), f"{pad}),"]


def _point(spec: Spec, side: int) -> str:
    point = spec.reference if side == 0 else spec.native
    module = point.module or ""
    path = f'f"{module.replace(HOLE, "{index}", 1)}"' if HOLE in module else f'"{module}"'
    parts = [path, *(['"input"'] if point.at == "input" else [])]
    parts += [f'element="{point.element}"'] if point.element is not None else []
    parts += [f"call={point.call!r}".replace("'", '"')] if point.call != "only" else []
    return f"Point({', '.join(parts)})"


def _options(spec: Spec) -> list[str]:
    given = [f"layout={spec.text}"] if spec.text else []
    if spec.valid is not None:
        unsqueezed = "" if spec.valid[1] is None else f".unsqueeze({spec.valid[1]})"
        given.append(f'valid=lambda inputs: inputs["{spec.valid[0]}"].bool(){unsqueezed}')
    given += ["replace=False"] if not spec.replace else []
    given += [f"channel_dim={spec.channel_dim}"] if spec.channel_dim != -1 else []
    given += ["attention=False"] if spec.attention is False else []
    return given + ([f"heads={spec.heads}"] if spec.heads else [])


def _judged(proposal: Proposal, names: Sequence[str], by_value: bool) -> str:
    """Word the evidence of a tap: how far apart both sides are there when all before it agrees."""
    seen = [proposal.distances[name] for name in names if name in proposal.distances]
    if not seen:
        return "" if by_value else f"{BLANK}: by names and order alone, not run"
    apart = max(seen)
    if agrees(apart):
        return f"{apart:.0e} apart" if apart else "equal"
    return f"{BLANK}: {apart:.1e} apart: another point, key or input, or a difference of the port"
