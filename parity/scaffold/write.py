"""The text of a pair file."""

from __future__ import annotations

import re
from collections.abc import Iterator

from parity.scaffold.lines import BLANK, comment, one_line
from parity.scaffold.propose import Proposal, agrees
from parity.scaffold.sides import home_of
from parity.scaffold.write_keys import key_map_lines
from parity.scaffold.write_sides import input_lines, side_lines
from parity.scaffold.write_taps import tap_lines


def pair_file(proposal: Proposal) -> str:
    """Return the pair file of a proposal; every blank in it is marked `TODO(pair)`."""
    body = [
        *side_lines(proposal), *key_map_lines(proposal), *tap_lines(proposal), *input_lines(proposal),
        *_pair(proposal),
    ]  # fmt: skip
    text = "\n".join(body)
    return "\n".join([*_head(proposal, text), text]).rstrip() + "\n"


def _head(proposal: Proposal, text: str) -> Iterator[str]:
    request = proposal.request
    yield f'"""The pair `{request.name}`.'
    yield ""
    yield f"reference  {request.reference.where}"
    yield f"native     {request.native.where}"
    yield ""
    yield from (line.removeprefix("# ") for line in comment(f"Written by `parity new`. {_found(proposal)}", 0, ""))
    yield f"Lines marked {BLANK} are open. Evidence stands beside each line; it is no proof: read it."
    yield '"""'
    yield ""
    yield "from __future__ import annotations"
    yield ""
    yield "from typing import Any"
    yield ""
    yield from _imports(text)


_NAMES = {
    "parity.errors": ("UsageError",),
    "parity.execution.tap": ("Inputs", "Layout", "Point", "Tap", "block_name", "per_frame", "permuted", "reshaped"),
    "parity.pair": ("Build", "ModelPair", "Side", "Source"),
    "parity.weights.draw": ("draw_weights",),
    "parity.weights.keymap": ("KeyMap", "fuse", "native_only", "reference_only", "rename", "split"),
    "torch": ("nn",),
}


def _imports(text: str) -> Iterator[str]:
    """Yield the imports of what the code uses, in the order ruff and isort give them where parity is installed."""
    code = "\n".join(line.split("  # ")[0] for line in text.splitlines() if not line.lstrip().startswith("#"))
    if "torch." in code:
        yield "import torch"
    for module, names in _NAMES.items():
        used = [name for name in names if re.search(rf'(?<![\w."]){name}(?![\w"])', code)]
        if used:
            yield f"from {module} import {', '.join(used)}"


def _found(proposal: Proposal) -> str:
    apart = proposal.output_distance
    if proposal.why_not_run is not None:
        return f"Nothing was run: {one_line(proposal.why_not_run)}."
    if apart is None:
        return "Both sides ran; the taps could not be run in lockstep."
    if agrees(apart):
        how = f"agreed to {apart:.0e}" if apart else "were equal"
        return f"In a float32 run the outputs {how}."
    return f"In a float32 run the outputs lay {apart:.1e} apart."


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
    if proposal.low_fails is not None:
        way = "say in its call what surrounds it, then drop this line"
        yield from comment(f"{BLANK}: {one_line(proposal.low_fails)}; {way}", 4)
        yield "    dtypes=(torch.float32,),"
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
