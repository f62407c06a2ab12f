"""The key map of a pair file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parity.scaffold.lines import BLANK, WIDTH, comment, one_line
from parity.scaffold.proposal import KeyProposal, Line, pattern_of
from parity.scaffold.propose import Proposal
from parity.scaffold.stacks import HOLE, Group


def key_map_lines(proposal: Proposal) -> Iterator[str]:
    """Yield the function that returns the key map."""
    keys = proposal.keys
    yield from ["", "", "def _key_map(build: Build) -> KeyMap:"]
    yield '    """Return the rules from reference to native keys."""'
    if keys.existing is not None and proposal.map_source is not None:
        yield from _existing(keys, keys.existing[1], proposal.map_source)
        return
    yield "    return KeyMap(("
    for line in keys.lines():
        yield from _rule(line, 8)
    yield from _blanks(keys, "reference", "where it goes, or why nowhere")
    yield from _blanks(keys, "native", "what it comes from, or why from nowhere")
    yield "    ))"


def _existing(keys: KeyProposal, text: str, source: str) -> Iterator[str]:
    module, name = source.split(":")
    for problem in keys.problems:
        yield from comment(f"{BLANK}: {one_line(problem)}", 4)
    if keys.suggested:
        yield from comment("Names and shapes say, as further arguments of the call below:", 4)
        lines = (part.strip() for line in KeyProposal(keys.suggested).lines() for part in _rule(line, 8))
        yield from (part for line in lines for part in comment(line, 4))
    yield f"    from {module} import {name.split('.')[0].removesuffix('()')}"
    yield ""
    if len(text) + 11 <= WIDTH:
        yield f"    return {text}"
    else:
        head, _, rest = text.partition("(")
        yield from [f"    return {head}(", *(f"        {part}," for part in _arguments(rest[:-1])), "    )"]


def _rule(line: Line, indent: int) -> list[str]:
    """Return a rule with its evidence behind it, or above where it is too long."""
    pad, said = " " * indent, f"# {line.evidence}"
    if len(pad + line.text) + 1 > WIDTH:
        head, _, rest = line.text.partition("(")
        parts = [line for part in _arguments(rest.removesuffix(")")) for line in _part(part, pad + "    ")]
        return [pad + said, f"{pad}{head}(", *parts, f"{pad}),"]
    whole = f"{pad}{line.text},  {said}"
    return [whole] if len(whole) <= WIDTH else [*comment(line.evidence, indent), f"{pad}{line.text},"]


def _part(part: str, pad: str) -> list[str]:
    """Return an argument in one line, or a tuple with an element a line."""
    if len(pad + part) + 1 <= WIDTH or not part.startswith("("):
        return [f"{pad}{part},"]
    return [f"{pad}(", *(f"{pad}    {inner}," for inner in _arguments(part[1:-1])), f"{pad}),"]


def _arguments(text: str) -> list[str]:
    """Split arguments at the commas that are in no parentheses and no string."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, letter in enumerate(text):
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter in "([{") - (letter in ")]}")
        if letter == "," and not quoted and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def _blanks(keys: KeyProposal, side: str, wanted: str) -> Iterator[str]:
    blank, others = keys.reference_blank, keys.native_blank
    if side == "native":
        blank, others = others, blank
    if blank:
        yield from comment(f"{BLANK}: {len(blank)} {side} tensors without a proposal. Say for each {wanted}.", 8)
    for groups in _by_layer(blank):
        near = dict.fromkeys(_open_name([o]) for g in groups for o in others if _same_shape(o, g) and len(g.shape) > 1)
        words = f"; free and of that shape: {', '.join(list(near)[:4])}" if near else ""
        words += "; its layer is not called in this forward" if set(groups) <= keys.idle else ""
        shapes = ", ".join(str(tuple(group.shape)) for group in groups)
        yield from comment(f"  {_open_name(groups)} {shapes}{words}", 8, "    ")
        yield from comment(f'  {side}_only(r"{pattern_of(groups)}", "why"),', 8, "    ")


def _by_layer(blank: Sequence[Group]) -> list[list[Group]]:
    owners = dict.fromkeys((group.owner, group.indices) for group in blank)
    return [[g for g in blank if (g.owner, g.indices) == owner] for owner in owners]


def _open_name(groups: Sequence[Group]) -> str:
    leaves = "|".join(group.leaf for group in groups)
    owner = groups[0].owner.replace(HOLE, "N")
    return ".".join(part for part in (owner, f"({leaves})" if len(groups) > 1 else leaves) if part)


def _same_shape(one: Group, other: Group) -> bool:
    return one.shape == other.shape and one.indices == other.indices
