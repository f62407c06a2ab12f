"""What a pair's inputs can vary, and the description of one drawn input: plain data, no tensors.

A `Drawn` says everything of an input but its values, which a pair makes from its seed. Its repr is one line that
`parse_drawn` reads back.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from parity.errors import UsageError


@dataclass(frozen=True)
class Span:
    """Whole numbers from `least` to `most`, both included, in steps.

    >>> list(Span(2, 7, 2).values)
    [2, 4, 6]
    """

    least: int
    most: int
    step: int = 1

    def __post_init__(self) -> None:
        if self.step < 1 or self.most < self.least:
            raise UsageError(f"Span({self.least}, {self.most}, {self.step}) holds no number; valid: least <= most")

    @property
    def values(self) -> range:
        """The numbers themselves."""
        return range(self.least, self.most + 1, self.step)

    def __str__(self) -> str:
        steps = f" in steps of {self.step}" if self.step > 1 else ""
        return f"{self.least} to {self.most}{steps}"


@dataclass(frozen=True)
class InputSpace:
    """What the inputs of a pair can vary. The defaults vary the size, the batch and the values only.

    Args:
        frames, height, width: of the latents; `step` is the patch's size there.
        batch: samples in one call.
        text: valid text tokens of a sample; `most` is a text without padding. None: no text, or always a full one.
        timesteps: least and greatest timestep.
        per_frame: whether a sample may have a timestep per latent frame.
        conditioning: most leading latent frames that may condition the others.
        guidance: least and greatest guidance, None where there is none.
        scale: least and greatest standard deviation of the latents.
        outliers: latent channels, of which up to two may be forty times as large; 0: none may.
        calls: most calls of the model, the judged one being the last.
        ranks: LoRA ranks that may be mixed, one after the other over the targets.
        alphas: `lora_alpha` of all targets.
    """

    frames: Span
    height: Span
    width: Span
    batch: Span = Span(1, 3)
    text: Span | None = None
    timesteps: tuple[float, float] = (0.0, 1000.0)
    per_frame: bool = False
    conditioning: int = 0
    guidance: tuple[float, float] | None = None
    scale: tuple[float, float] = (1e-3, 30.0)
    outliers: int = 0
    calls: int = 2
    ranks: tuple[int, ...] = (4, 2, 3, 1, 8)
    alphas: tuple[float, ...] = (4.0, 1.0, 6.5, 32.0)


@dataclass(frozen=True, repr=False)
class Drawn:
    """One drawn input, without its values.

    Args:
        batch: samples. frames, height, width: of the latents.
        text_lengths: valid text tokens, one a sample; empty where a pair does not vary them.
        timesteps: for each sample its timestep, or one per latent frame.
        conditioning: leading latent frames that condition the others.
        guidance: its scale, None without.
        scale: standard deviation of the latents.
        outliers: latent channels that are `OUTLIER` times as large.
        ranks: LoRA ranks, one after the other over the targets; empty: the pair's own adapter.
        alpha: `lora_alpha` of all targets, with `ranks`.
        before: the calls made before the judged one.
        seed: of all values.
    """

    batch: int = 1
    frames: int = 1
    height: int = 2
    width: int = 2
    text_lengths: tuple[int, ...] = ()
    timesteps: tuple[tuple[float, ...], ...] = ((500.37,),)
    conditioning: int = 0
    guidance: float | None = None
    scale: float = 1.0
    outliers: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    alpha: float = 4.0
    before: tuple[Drawn, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        rows = self.batch if isinstance(self.batch, int) else 0
        if rows < 1 or len(self.timesteps) != rows or (self.text_lengths and len(self.text_lengths) != rows):
            raise UsageError(f"{self!r}: batch, timesteps and text_lengths must agree: one entry a sample")
        if any(len(steps) not in (1, self.frames) for steps in self.timesteps):
            raise UsageError(f"{self!r}: a sample has one timestep, or one per frame ({self.frames})")
        if len({len(steps) for steps in self.timesteps}) > 1:
            raise UsageError(f"{self!r}: samples of one batch all have one timestep, or all one per frame")

    def __repr__(self) -> str:
        """Return the line that makes it again: the size, and whatever is not as usual."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        usual = {f.name: f.default for f in fields(self) if f.name not in _ALWAYS}
        words = [f"{name}={value!r}" for name, value in told.items() if name not in usual or value != usual[name]]
        return f"Drawn({', '.join(words)})"

    @property
    def per_frame(self) -> bool:
        """Whether timesteps are per latent frame."""
        return len(self.timesteps[0]) > 1


def typical(space: InputSpace) -> Drawn:
    """Return a small input with something of everything, where a change of any input can show."""
    batch, frames = _near(space.batch, 2), _near(space.frames, 3)
    low, high = space.timesteps
    steps = tuple((round(low + (high - low) * (0.3 + 0.4 * row / batch), 2),) for row in range(batch))
    shorter = () if space.text is None else tuple(_near(space.text, space.text.most - 1 - row) for row in range(batch))
    return Drawn(
        batch=batch,
        frames=frames,
        height=_near(space.height, 3 * space.height.step),
        width=_near(space.width, 4 * space.width.step),
        text_lengths=shorter,
        timesteps=steps,
        conditioning=min(1, space.conditioning, frames - 1),
        guidance=None if space.guidance is None else round(sum(space.guidance) / 2, 2),
        scale=1.0 if _within(1.0, space.scale) else space.scale[0],
    )


def _near(span: Span, wanted: int) -> int:
    """Return the number of a span nearest to the wanted one."""
    return min(span.values, key=lambda value: abs(value - wanted))


_ALWAYS = ("batch", "frames", "height", "width", "timesteps", "seed")
OUTLIER = 40.0
"""How many times as large an outlier channel is."""


def parse_drawn(text: str) -> Drawn:
    """Read a `Drawn` from its repr; nothing in the text is run.

    >>> parse_drawn("Drawn(height=4, before=(Drawn(seed=1),))") == Drawn(height=4, before=(Drawn(seed=1),))
    True

    Raises:
        UsageError: it is no such text.
    """
    try:
        return _drawn(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise UsageError(f"not a drawn input: {text[:80]!r} ({error})\nvalid: as printed, {Drawn()!r}") from error


def _drawn(node: ast.expr) -> Drawn:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "Drawn" or node.args:
        raise ValueError("it is no Drawn(...)")
    known = {f.name for f in fields(Drawn)}
    unknown = [k.arg or "**" for k in node.keywords if k.arg not in known]
    if unknown:
        raise UsageError.unknown("dimension of a drawn input", unknown[0], known)
    return Drawn(**{str(k.arg): _value(str(k.arg), k.value) for k in node.keywords})


def _value(name: str, node: ast.expr) -> Any:
    if name != "before":
        return ast.literal_eval(node)
    if not isinstance(node, ast.Tuple):
        raise ValueError("`before` is a tuple of Drawn(...)")
    return tuple(_drawn(one) for one in node.elts)


def outside(space: InputSpace, drawn: Drawn) -> str | None:
    """Say what of a drawn input a pair's space does not hold, None where it holds all."""
    return next(_problems(space, drawn), None)


def _problems(space: InputSpace, drawn: Drawn) -> Iterator[str]:
    for name in ("batch", "frames", "height", "width"):
        if getattr(drawn, name) not in (span := getattr(space, name)).values:
            yield f"{name} {getattr(drawn, name)}; valid: {span}"
    lengths = () if space.text is None else space.text.values
    wrong = [length for length in drawn.text_lengths if length not in lengths]
    if wrong or (space.text is not None and not drawn.text_lengths):
        yield f"text_lengths {drawn.text_lengths}; valid: {space.text or 'none'}, one a sample"
    low, high = space.timesteps
    if not all(low <= step <= high for steps in drawn.timesteps for step in steps):
        yield f"timesteps {drawn.timesteps}; valid: {low:g} to {high:g}"
    if drawn.per_frame and not space.per_frame:
        yield "a timestep per frame; valid: one a sample"
    if not 0 <= drawn.conditioning <= min(space.conditioning, drawn.frames - 1):
        yield f"{drawn.conditioning} conditioning frames; valid: 0 to {min(space.conditioning, drawn.frames - 1)}"
    yield from _problems_of_values(space, drawn)
    for earlier in drawn.before:
        yield from (f"before: {problem}" for problem in _problems(space, earlier))
    if len(drawn.before) >= space.calls:
        yield f"{len(drawn.before) + 1} calls; valid: up to {space.calls}"


def _problems_of_values(space: InputSpace, drawn: Drawn) -> Iterator[str]:
    if drawn.guidance is not None and (space.guidance is None or not _within(drawn.guidance, space.guidance)):
        yield f"guidance {drawn.guidance:g}; valid: {space.guidance or 'none'}"
    if not _within(drawn.scale, space.scale):
        yield f"scale {drawn.scale:g}; valid: {space.scale[0]:g} to {space.scale[1]:g}"
    if any(channel not in range(space.outliers) for channel in drawn.outliers):
        yield f"outliers {drawn.outliers}; valid: channels below {space.outliers}"
    if any(rank < 1 for rank in drawn.ranks):
        yield f"ranks {drawn.ranks}; valid: 1 and more"


def _within(value: float, ends: tuple[float, float]) -> bool:
    return math.isfinite(value) and ends[0] <= value <= ends[1]
