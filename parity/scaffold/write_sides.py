"""The part of a pair file that builds and calls both sides and draws their inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from parity.scaffold.inputs import Arguments
from parity.scaffold.lines import BLANK, comment, literal, one_line, wrapped
from parity.scaffold.propose import Proposal
from parity.scaffold.sides import Factory, resolved


def side_lines(proposal: Proposal) -> Iterator[str]:
    """Yield the functions that build and call both sides."""
    request = proposal.request
    for side, factory, arguments, draws in (
        ("reference", request.reference, proposal.arguments[0], not proposal.loaded),
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
    given = [f"{key}={literal(value)}" for key, value in factory.config.items()]
    yield from wrapped(f"    model = {name}(", given, ")", ", ".join(given))
    if draws:  # a factory that takes the build fills its model by itself
        yield "    draw_weights(model, build.seed)"
    yield "    return nn.Module.to(model, device=build.device, dtype=build.dtype).eval().requires_grad_(False)"





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
        yield from comment(f"{BLANK}: hand over {missing} too, then remove the line that raises.", 4)
        yield f'    raise UsageError("{BLANK}: say in _call_{side} what the {side} gets for {missing}")'
        if not arguments.given:
            return
    if ".to(dtype)" in arguments.text:
        yield "    dtype = next(p for p in model.parameters() if p.dim() > 1).dtype"
    yield from wrapped("    return model(", arguments.text.split(", "), ")", arguments.text)


def input_lines(proposal: Proposal) -> Iterator[str]:
    """Yield the function that draws the inputs."""
    yield from ["", "", "def _inputs(build: Build, seed: int) -> dict[str, Any]:"]
    yield '    """Draw what both sides are called with."""'
    if proposal.request.inputs is not None:
        yield from _named_inputs(proposal.request.inputs)
        return
    found = proposal.inputs
    assert found is not None
    for blank in found.blanks:
        yield from comment(f"{BLANK}: {one_line(blank)}", 4)
    if not found.drawn or found.blanks:
        what = "; ".join(found.blanks) or "the forwards' signatures name nothing both take"
        yield f"    # {BLANK}: return a dict from name to tensor, drawn from the seed."
        yield f'    raise UsageError("{BLANK}: fill in _inputs of the pair {proposal.request.name}: {what}")'
        return
    yield "    generator = torch.Generator().manual_seed(seed)"
    yield "    drawn: dict[str, Any] = {"
    yield from (f'        "{d.name}": {d.text},' for d in found.drawn)
    yield "    }"
    if any(d.how == "count" for d in found.drawn):
        yield "    placed = {n: v.to(build.device) for n, v in drawn.items() if isinstance(v, torch.Tensor)}"
        yield "    return {**drawn, **placed}"
    else:
        yield "    return {name: value.to(build.device) for name, value in drawn.items()}"


def _named_inputs(where: str) -> Iterator[str]:
    module, name = where.split(":")
    wanted = [p for p in inspect.signature(resolved(where)).parameters if p in ("build", "seed")]
    yield f"    from {module} import {name.split('.')[0]}"
    yield ""
    yield f"    return dict({name}({', '.join(f'{p}={p}' for p in wanted)}))"
