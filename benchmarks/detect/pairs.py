"""The pairs that are measured, at inputs small enough for thousands of runs.

Letters in shapes: B batch, C channels, F latent frames, H W latent height and width, S tokens.
"""

from __future__ import annotations

import importlib
import random
from dataclasses import replace
from functools import cache, partial
from typing import Any

from torch import Tensor

from parity.errors import ParityError
from parity.pair import Build, ModelPair
from parity.space import Drawn, InputSpace

BUNDLED = "longcat"
REAL = ("wan", "longcat_fastvideo")
SHAPES = ((4, 4, 8), (2, 8, 6), (3, 6, 10), (1, 8, 12), (4, 8, 16))
"""F, H and W of default inputs: 32 to 128 tokens, rows and columns always different."""


@cache
def whole(name: str) -> ModelPair:
    """Import a pair."""
    pair: ModelPair = importlib.import_module(f"fixtures.pairs.{name}").PAIR
    return pair


def small(name: str, inputs: str) -> ModelPair:
    """Return a pair whose default inputs are those asked for: "shape2" is `SHAPES[2]`, "drawn3" the fourth drawn."""
    pair = whole(name)
    number = int(inputs[-1])
    if inputs.startswith("drawn") and pair.space is not None:
        return replace(pair, inputs=partial(_drawn, pair, number), variants={}, lanes={})
    batch, make = 2 if inputs.startswith("drawn") else 1, pair.inputs

    def cropped(build: Build, seed: int) -> dict[str, Any]:
        return _cropped(make(build, seed), SHAPES[number], batch)

    return replace(pair, inputs=cropped, variants={}, lanes={})


def _cropped(inputs: dict[str, Any], shape: tuple[int, int, int], batch: int) -> dict[str, Any]:
    """Cut latents [B, C, F, H, W] to a shape and everything to at most some samples."""
    frames, rows, columns = shape
    few: dict[str, Any] = {k: v[:batch] if isinstance(v, (Tensor, list)) else v for k, v in inputs.items()}
    latents = few["latents"]
    return {**few, "latents": latents[:, :, :frames, :rows, :columns].contiguous()}


def _drawn(pair: ModelPair, number: int, build: Build, seed: int) -> dict[str, Any]:
    assert pair.space is not None
    assert pair.drawn is not None
    return pair.drawn(build, replace(some_input(pair.space(build), number), seed=seed))


def some_input(space: InputSpace, number: int) -> Drawn:
    """Draw one input of a space: several samples, ragged texts, a timestep per frame, conditioning, guidance."""
    rng = random.Random(number)
    spans = (space.batch, 1), (space.frames, 1), (space.height, 2), (space.width, 4)
    batch, frames, rows, columns = (rng.choice([n for n in span.values if n > above]) for span, above in spans)
    low, high = space.timesteps
    count = frames if space.per_frame and number % 2 else 1
    steps = tuple(tuple(round(rng.uniform(low, high), 2) for _ in range(count)) for _ in range(batch))
    lengths = () if space.text is None else tuple(rng.randint(2, space.text.most) for _ in range(batch))
    guided = space.guidance is not None and number % 3 == 2
    return Drawn(
        batch=batch, frames=frames, height=rows, width=columns, text_lengths=lengths, timesteps=steps,
        conditioning=1 if space.conditioning and number % 2 == 0 else 0,
        guidance=4.5 if guided else None, scale=rng.choice((1.0, 0.3, 3.0)),
    )  # fmt: skip


@cache
def missing(name: str) -> str:
    """Say why a pair cannot be measured here, "" where it can."""
    try:
        pair = whole(name)
        pair.reference.build(Build(size="tiny"))
        with pair.native.around_session():
            pair.native.build(Build(size="tiny"))
    except (ParityError, ImportError) as error:
        return str(error).splitlines()[0]
    return ""
