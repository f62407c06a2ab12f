"""The text of a pair file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

from parity.execution.passes import OUTPUT
from parity.scaffold.inputs import Arguments
from parity.scaffold.propose import Proposal, agrees
from parity.scaffold.sides import Factory, home_of, resolved
from parity.scaffold.stacks import HOLE, Group
from parity.scaffold.taps import Spec, block_of

BLANK = "TODO(pair)"
_WIDTH = 118


def pair_file(proposal: Proposal) -> str:
    """Return the pair file of a proposal; every blank in it is marked `TODO(pair)`."""
    body = [*_sides(proposal), *_key_map(proposal), *_taps(proposal), *_inputs(proposal), *_pair(proposal)]
    text = "\n".join(body)
    return "\n".join([*_head(proposal, text), text]).rstrip() + "\n"


# --- head -------------------------------------------------------------------------------------------------------------


def _head(proposal: Proposal, text: str) -> Iterator[str]:
    request = proposal.request
    yield f'"""The pair `{request.name}`.'
    yield ""
    yield f"reference  {request.reference.where}"
    yield f"native     {request.native.where}"
    yield ""
    yield f"Written by `parity new`. {_found(proposal)}"
    yield f'Lines marked {BLANK} are open. Evidence stands beside each line; it is no proof: read it.'
    yield '"""'
    yield ""
    yield "from __future__ import annotations"
    yield ""
    yield "from typing import Any"
    yield ""
    yield from (line for line, word in _THIRD_PARTY if word in text)
    yield ""
    yield from _own_imports(text)


_THIRD_PARTY = [("import torch", "torch."), ("from torch import nn", "nn.")]
_OWN = {
    "parity.errors": ("UsageError",),
    "parity.execution.tap": ("Inputs", "Layout", "Point", "Tap", "block_name", "permuted", "reshaped"),
    "parity.pair": ("Build", "ModelPair", "Side", "Source"),
    "parity.weights.draw": ("draw_weights",),
    "parity.weights.keymap": ("KeyMap", "fuse", "native_only", "reference_only", "rename", "split"),
}


def _own_imports(text: str) -> Iterator[str]:
    code = "\n".join(line.split("  # ")[0] for line in text.splitlines() if not line.lstrip().startswith("#"))
    for module, names in _OWN.items():
        used = [name for name in names if f"{name}(" in code or f": {name}" in code or f"> {name}" in code or f"{name}." in code]
        if used:
            yield f"from {module} import {', '.join(used)}"


def _found(proposal: Proposal) -> str:
    apart = proposal.output_distance
    if proposal.why_not_run is not None:
        return f"Nothing was run: {_one_line(proposal.why_not_run)}."
    if apart is None:
        return "Both sides ran; the taps could not be run in lockstep."
    if agrees(apart):
        how = f"agreed to {apart:.0e}" if apart else "were equal"
        return f"In a float32 run the outputs {how}."
    return f"In a float32 run the outputs lay {apart:.1e} apart."


def _one_line(text: str) -> str:
    return " ".join(text.replace('"', "'").replace("\\", "/").split())[:200]


# --- sides ------------------------------------------------------------------------------------------------------------


def _sides(proposal: Proposal) -> Iterator[str]:
    request = proposal.request
    for side, factory, arguments, draws in (
        ("reference", request.reference, proposal.arguments[0], not proposal.loaded and not request.reference.takes_build),
        ("native", request.native, proposal.arguments[1], False),
    ):
        yield from ["", "", *_build(side, factory, draws)]
        called = _call(side, arguments) if arguments is not None else _named_call(side, factory.call or "")
        yield from ["", "", *called]


def _build(side: str, factory: Factory, draws: bool) -> Iterator[str]:
    module, name = factory.where.split(":")
    yield f"def _build_{side}(build: Build) -> nn.Module:"
    yield f'    """Build the {side} in the build\'s dtype, on its device."""'
    yield f"    from {module} import {name.split('.')[0].removesuffix('()')}"
    yield ""
    if factory.takes_build:
        yield f"    return {name}(build)"
        return
    given = ", ".join(f"{key}={value!r}" for key, value in factory.config.items())
    yield from _wrapped(f"    model = {name}(", [f"{key}={value!r}" for key, value in factory.config.items()], ")", given)
    if draws:
        yield "    draw_weights(model, build.seed)"
    yield "    return nn.Module.to(model, device=build.device, dtype=build.dtype).eval().requires_grad_(False)"


def _wrapped(head: str, parts: Sequence[str], tail: str, joined: str) -> list[str]:
    if len(head + joined + tail) <= _WIDTH:
        return [head + joined + tail]
    return [head, *(f"        {part}," for part in parts), f"    {tail}"]


def _named_call(side: str, where: str) -> Iterator[str]:
    module, name = where.split(":")
    yield f"def _call_{side}(model: nn.Module, inputs: Inputs) -> Any:"
    yield f'    """Run one forward of the {side}."""'
    yield from (f"    from {module} import {name.split('.')[0]}", "", f"    return {name}(model, inputs)")


def _call(side: str, arguments: Arguments) -> Iterator[str]:
    yield f"def _call_{side}(model: nn.Module, inputs: Inputs) -> Any:"
    yield f'    """Run one forward of the {side}."""'
    if arguments.missing:
        missing = ", ".join(arguments.missing)
        yield f"    # {BLANK}: hand over {missing} too, then remove the line that raises."
        yield f'    raise UsageError("{BLANK}: say in _call_{side} what the {side} gets for {missing}")'
        if not arguments.given:
            return
    if ".to(dtype)" in arguments.text:
        yield "    dtype = next(model.parameters()).dtype"
    yield from _wrapped("    return model(", arguments.text.split(", "), ")", arguments.text)


# --- key map ----------------------------------------------------------------------------------------------------------


def _key_map(proposal: Proposal) -> Iterator[str]:
    keys = proposal.keys
    yield from ["", "", "def _key_map(build: Build) -> KeyMap:"]
    yield '    """Return the rules from reference to native keys."""'
    if keys.existing is not None and proposal.map_source is not None:
        module, name = proposal.map_source.split(":")
        for problem in keys.problems:
            yield f"    # {BLANK}: {_one_line(problem)}"
        yield f"    from {module} import {name.split('.')[0].removesuffix('()')}"
        yield ""
        yield f"    return {keys.existing[1]}"
        return
    yield "    return KeyMap(("
    for line in keys.lines():
        yield from (f"        {part}" for part in _rule(line.text, line.evidence))
    yield from _blank_keys("reference", keys.reference_blank, keys.native_blank, "where it goes, or why nowhere")
    yield from _blank_keys("native", keys.native_blank, keys.reference_blank, "what it comes from, or why from nowhere")
    yield "    ))"


def _rule(text: str, evidence: str) -> list[str]:
    if len(text) + 9 <= _WIDTH:
        whole = f"{text},  # {evidence}"
        return [whole] if len(whole) + 8 <= _WIDTH else [f"# {evidence}", f"{text},"]
    head, _, rest = text.partition("(")
    parts = _top_level(rest.removesuffix(")"))
    return [f"# {evidence}", f"{head}(", *(f"    {part}," for part in parts), "),"]


def _top_level(text: str) -> list[str]:
    """Split arguments at the commas that are in no parentheses and no string."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, letter in enumerate(text):
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter in "([{") - (letter in ")]}")
        if letter == "," and not quoted and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def _blank_keys(side: str, blank: Sequence[Group], others: Sequence[Group], wanted: str) -> Iterator[str]:
    if blank:
        yield f"        # {BLANK}: {len(blank)} {side} keys without a proposal. Say for each {wanted}."
    for group in blank:
        number = "".join("N" if part == HOLE else part for part in _pieces(group.template))
        near = [_with_n(o.template) for o in others if o.shape == group.shape and o.indices == group.indices][:4]
        words = f"; of that shape are free: {', '.join(near)}" if near else ""
        yield from _comment(f"{number} {tuple(group.shape)}{words}")
        example = f'{side}_only(r"{_escaped(group.template)}", "why")'
        yield from _comment(example + ",")


def _pieces(template: str) -> list[str]:
    first, *rest = template.split(HOLE)
    return [first, *(part for piece in rest for part in (HOLE, piece))]


def _with_n(template: str) -> str:
    return template.replace(HOLE, "N")


def _escaped(template: str) -> str:
    return template.replace(".", r"\.").replace(HOLE, r"\d+")


def _comment(text: str) -> Iterator[str]:
    line = f"        #   {text}"
    yield line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."


# --- taps -------------------------------------------------------------------------------------------------------------


def _taps(proposal: Proposal) -> Iterator[str]:
    specs = proposal.taps
    stacks = {spec.stack: spec.count for spec in specs if spec.stack}
    for stack, count in stacks.items():
        yield from ["", "", f"{stack.upper()}S = {count}"]
        yield f'"""How many of them the models above have."""'
    yield from ["", "", "def _taps(build: Build) -> tuple[Tap, ...]:"]
    yield '    """Return the taps in execution order."""'
    yield "    return ("
    done: set[str] = set()
    for spec in specs:
        if spec.stack is None:
            yield from _tap(spec, proposal, '"' + spec.name + '"', 8)
        elif spec.stack not in done:
            done.add(spec.stack)
            yield f"        *(tap for index in range({spec.stack.upper()}S) for tap in _{spec.stack}_taps(index)),"
    yield f'        Tap("{OUTPUT}", Point(""), Point(""), replace=False, channel_dim=1),{_judged(proposal, [OUTPUT])}'
    yield "    )"
    for stack in stacks:
        yield from _stack_taps(stack, [s for s in specs if s.stack == stack], proposal)


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
    evidence = _judged(proposal, names, spec.by_value)
    line = f"Tap({', '.join(parts)}),"
    pad = " " * indent
    if len(pad + line + evidence) <= _WIDTH:
        yield pad + line + evidence
    elif len(pad + line) <= _WIDTH:
        yield from [pad + evidence.strip(), pad + line]
    else:
        yield from [pad + evidence.strip(), f"{pad}Tap(", *(f"{pad}    {part}," for part in parts), f"{pad}),"]


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


def _judged(proposal: Proposal, names: Sequence[str], by_value: bool = True) -> str:
    """Return the evidence of a tap as a comment: how far apart both sides are there when all before it agrees."""
    seen = [proposal.distances[name] for name in names if name in proposal.distances]
    if not seen:
        return "" if proposal.why_not_run is None and by_value else f"  # {BLANK}: by names and order alone, not run"
    apart = max(seen)
    if agrees(apart):
        return f"  # {apart:.0e} apart" if apart else "  # equal"
    return f"  # {BLANK}: {apart:.1e} apart: another point, another key, or the port's first difference"


# --- inputs and pair --------------------------------------------------------------------------------------------------


def _inputs(proposal: Proposal) -> Iterator[str]:
    yield from ["", "", "def _inputs(build: Build, seed: int) -> dict[str, Any]:"]
    yield '    """Draw what both sides are called with."""'
    if proposal.request.inputs is not None:
        yield from _named_inputs(proposal.request.inputs)
        return
    found = proposal.inputs
    assert found is not None
    for blank in found.blanks:
        yield f"    # {BLANK}: {blank}"
    if not found.drawn or found.blanks:
        what = "; ".join(found.blanks) or "the forwards' signatures name nothing both take"
        yield f"    # {BLANK}: return a dict from name to tensor, drawn from the seed."
        yield f'    raise UsageError("{BLANK}: fill in _inputs of the pair {proposal.request.name}: {what}")'
        return
    yield "    generator = torch.Generator().manual_seed(seed)"
    yield "    drawn = {"
    yield from (f'        "{d.name}": {d.text},' for d in found.drawn)
    yield "    }"
    yield "    return {name: value.to(build.device) for name, value in drawn.items()}"


def _named_inputs(where: str) -> Iterator[str]:
    module, name = where.split(":")
    wanted = [p for p in inspect.signature(resolved(where)).parameters if p in ("build", "seed")]
    yield f"    from {module} import {name.split('.')[0]}"
    yield ""
    yield f"    return dict({name}({', '.join(f'{p}={p}' for p in wanted)}))"


def _pair(proposal: Proposal) -> Iterator[str]:
    request = proposal.request
    yield from ["", "", "PAIR = ModelPair(", f'    name="{request.name}",']
    for number, side in enumerate(("reference", "native")):
        yield f"    {side}=Side("
        yield f'        name="{type(proposal.models[number]).__name__} of {_home(proposal, number)[0]}",'
        yield f"        source={_source(proposal, number)},"
        yield f"        build=_build_{side},"
        yield f"        call=_call_{side},"
        yield from _output(proposal, number)
        yield "    ),"
    yield from ("    key_map=_key_map,", "    taps=_taps,", "    inputs=_inputs,")
    if proposal.loaded:
        yield "    load=lambda reference, native: None,  # both sides hold the same values by themselves"
    yield ")"


def _output(proposal: Proposal, number: int) -> Iterator[str]:
    if proposal.picked is None:
        yield f"        # {BLANK}: pick the output, [B, C, F, H, W] on both sides, from what the model returns."
        yield "        output=lambda returned: returned,"
    else:
        yield f"        output=lambda returned: {proposal.picked[number][0]},"


def _home(proposal: Proposal, number: int) -> tuple[str, str | None]:
    return home_of(proposal.models[number])


def _source(proposal: Proposal, number: int) -> str:
    module, distribution = _home(proposal, number)
    if distribution is None:
        return f'Source("{module}", bundled=True)'
    return f'Source("{module}", distribution="{distribution}")'

