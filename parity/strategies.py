"""Hypothesis strategies: what is drawn is the small description of an input; the pair makes its values from a seed.

Every strategy shrinks to the plainest: the smallest latent, one sample, one timestep, a text of one token.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings, target
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import Flaky

from parity.errors import UsageError
from parity.space import Drawn, InputSpace, outside, parse_drawn

Draw = Callable[[st.SearchStrategy[Any]], Any]
ProfileName = Literal["local", "ci"]


@st.composite
def drawn_inputs(draw: Draw, space: InputSpace, lora: bool = False, earlier: bool = True) -> Drawn:
    """Draw one input of a space.

    Args:
        draw: given by hypothesis.
        space: what may vary.
        lora: whether ranks and alpha of the adapter vary too.
        earlier: whether there may be calls before the judged one.
    """
    batch = draw(st.sampled_from(space.batch.values))
    frames = draw(st.sampled_from(space.frames.values))
    drawn = Drawn(
        batch=batch,
        frames=frames,
        height=draw(st.sampled_from(space.height.values)),
        width=draw(st.sampled_from(space.width.values)),
        text_lengths=draw(text_lengths(space, batch)),
        timesteps=draw(timesteps(space, batch, frames)),
        conditioning=draw(st.integers(0, min(space.conditioning, frames - 1))),
        guidance=draw(guidances(space)),
        scale=draw(st.sampled_from(scales(space))),
        outliers=draw(outlier_channels(space)),
        ranks=draw(_ranks(space)) if lora else (),
        alpha=draw(st.sampled_from(space.alphas)) if lora else Drawn.alpha,
        seed=draw(st.integers(0, 999)),
    )
    return replace(drawn, before=draw(calls_before(space, drawn))) if earlier and space.calls > 1 else drawn


def text_lengths(space: InputSpace, batch: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw valid text tokens per sample: one, short, full, none; nothing where a pair does not vary them."""
    if space.text is None:
        return st.just(())
    span = space.text
    ends = [n for n in dict.fromkeys((1, span.most, span.least, 0)) if n in span.values]
    row = st.one_of(st.sampled_from(ends), st.sampled_from(span.values))
    return st.tuples(*[row] * batch)


def timesteps(space: InputSpace, batch: int, frames: int) -> st.SearchStrategy[tuple[tuple[float, ...], ...]]:
    """Draw a timestep per sample or per frame, mostly not a whole number: bfloat16 holds whole ones up to 256 only."""
    low, high = space.timesteps
    parts = 1000
    step = st.builds(
        lambda whole, part: round(low + (high - low) * min(whole + part, parts) / parts, 3),
        st.integers(0, parts), st.sampled_from((0.37, 0.0, 0.5)),
    )  # fmt: skip
    counts = st.sampled_from((1, frames) if space.per_frame and frames > 1 else (1,))
    return counts.flatmap(lambda count: st.tuples(*[st.tuples(*[step] * count)] * batch))


def guidances(space: InputSpace) -> st.SearchStrategy[float | None]:
    """Draw no guidance, or a scale of it."""
    if space.guidance is None:
        return st.none()
    low, high = space.guidance
    return st.none() | st.integers(0, 16).map(lambda part: low + (high - low) * part / 16)


def scales(space: InputSpace) -> list[float]:
    """List standard deviations of the latents: 1 first, then from the ends of the span inwards."""
    low, high = space.scale
    ladder = [high, low, *(10.0**power for power in (1, -2, -1) if low < 10.0**power < high)]
    return [1.0, *ladder] if low <= 1.0 <= high else ladder


def outlier_channels(space: InputSpace) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw up to two latent channels that stand out."""
    if not space.outliers:
        return st.just(())
    most = min(2, space.outliers)
    some = st.lists(st.integers(0, space.outliers - 1), min_size=1, max_size=most, unique=True)
    return st.just(()) | some.map(lambda channels: tuple(sorted(channels)))


def _ranks(space: InputSpace) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw the pair's own adapter, or up to three ranks that take turns."""
    return st.just(()) | st.lists(st.sampled_from(space.ranks), min_size=1, max_size=3).map(tuple)


def calls_before(space: InputSpace, drawn: Drawn) -> st.SearchStrategy[tuple[Drawn, ...]]:
    """Draw no call before the judged one, or some: on inputs of the same sizes, as in a sampling loop, or of others."""
    alike = st.builds(
        lambda lengths, steps, seed: replace(drawn, text_lengths=lengths, timesteps=steps, seed=seed),
        text_lengths(space, drawn.batch), timesteps(space, drawn.batch, drawn.frames), st.integers(1000, 1999),
    )  # fmt: skip
    other = drawn_inputs(space, earlier=False)
    return st.just(()) | st.lists(alike | other, min_size=1, max_size=space.calls - 1).map(tuple)


# --- running them -----------------------------------------------------------------------------------------------------


ROUND = 10
"""Inputs drawn in one go: after as many hypothesis begins to vary what it had, where drawing anew shows more."""
CLIMBS_FROM = 40
"""From so many inputs on, half of them climb towards large numbers."""


@dataclass(frozen=True)
class Profile:
    """How inputs are chosen.

    Args:
        examples: inputs that are run, besides those that make a failing one smaller.
        name: "local" draws from `seed`, "ci" draws the same inputs each time.
        seed: of a local run.
        remembers: a name under which a local run keeps what failed, to begin with it the next time; "" for none.
        shrinks: inputs that are run to make a failing one smaller.
    """

    examples: int = 6
    name: ProfileName = "local"
    seed: int = 0
    remembers: str = ""
    shrinks: int = 60

    def rounds(self) -> Iterator[tuple[int, settings]]:
        """Yield the seed and hypothesis' own settings of each round."""
        first = 0 if self.name == "ci" else self.seed
        drawn = self.examples // 2 if self.examples >= CLIMBS_FROM else self.examples
        for number, start in enumerate(range(0, drawn, ROUND)):
            yield first * 1000 + number, self._settings(min(ROUND, drawn - start))
        if drawn < self.examples:
            yield first * 1000 + 999, self._settings(self.examples - drawn, Phase.target)

    def _settings(self, examples: int, *more: Phase) -> settings:
        return settings(
            max_examples=examples, derandomize=self.name == "ci", deadline=None, print_blob=False, database=None,
            report_multiple_bugs=False, verbosity=Verbosity.quiet, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink, *more],
        )  # fmt: skip


class _Memory:
    """What failed before, as hypothesis keeps its examples: readable, and good for other strategies too."""

    def __init__(self, profile: Profile) -> None:
        self._on = bool(profile.remembers) and profile.name == "local"
        self._key = profile.remembers.encode()
        self._database = DirectoryBasedExampleDatabase(Path(".hypothesis", "parity"))

    def inputs(self, space: InputSpace) -> list[Drawn]:
        """Return the inputs of this space that are kept."""
        texts = sorted(self._database.fetch(self._key)) if self._on else []
        return [drawn for text in texts if (drawn := _read(text)) is not None and outside(space, drawn) is None]

    def keep(self, drawn: Drawn) -> None:
        if self._on:
            self._database.save(self._key, repr(drawn).encode())

    def drop(self, drawn: Drawn) -> None:
        self._database.delete(self._key, repr(drawn).encode())


def _read(text: bytes) -> Drawn | None:
    """Read what was kept, None where it is of another version."""
    try:
        return parse_drawn(text.decode(errors="replace"))
    except UsageError:
        return None


def default_profile() -> ProfileName:
    """Return the profile of this machine: `ci` where the environment says CI, else `local`."""
    return "ci" if os.environ.get("CI") else "local"


@dataclass(frozen=True)
class Seen:
    """What running one input showed: whether it fails, and numbers to climb on."""

    fails: bool
    targets: dict[str, float]


class _Found(Exception):
    """An input fails."""


class _Enough(BaseException):
    """Ends a run at once, as an interrupt would: what was found is small enough."""


def explore(
    space: InputSpace, check: Callable[[Drawn, bool], Seen], profile: Profile, lora: bool = False
) -> Drawn | None:
    """Draw inputs, climb towards large numbers, and return the smallest input found to fail, None where none does.

    Args:
        space: what may vary.
        check: runs an input; told whether an earlier one has failed already, so that this one only makes it smaller.
        profile: how many, and how they are chosen.
        lora: whether the adapter varies too.
    """
    search, memory = _Search(check, profile.shrinks), _Memory(profile)
    for drawn in memory.inputs(space):
        if check(drawn, False).fails:
            return drawn
        memory.drop(drawn)
    found = _drawn_in_rounds(space, search, profile, lora)
    if found is not None:
        memory.keep(found)
    return found


def _drawn_in_rounds(space: InputSpace, search: _Search, profile: Profile, lora: bool) -> Drawn | None:
    for start, chosen in profile.rounds():

        @seed(start)
        @chosen
        @given(drawn_inputs(space, lora))
        def run(drawn: Drawn) -> None:
            search(drawn)

        try:
            with _alike_everywhere():
                run()
        except (_Found, _Enough, Flaky):
            return search.smallest
    return None


@contextmanager
def _alike_everywhere() -> Iterator[None]:
    """Keep hypothesis from drawing numbers it finds in the source of whatever this process has imported.

    One seed must draw the same inputs in every process, whatever ran in it before.
    """
    providers: Any = importlib.import_module("hypothesis.internal.conjecture.providers")
    held = getattr(providers, "_get_local_constants", None)
    if held is None:  # a version that does not look
        yield
        return
    kinds = ("integers", "floats", "bytes", "strings")
    nothing = providers.Constants(**{kind: providers.SortedSet() for kind in kinds})
    providers.CONSTANTS_CACHE.cache.clear()
    providers._get_local_constants = lambda: nothing
    try:
        yield
    finally:
        providers._get_local_constants = held
        providers.CONSTANTS_CACHE.cache.clear()


class _Search:
    """Runs inputs for hypothesis, each once, and gives up making a failing one smaller after a while."""

    def __init__(self, check: Callable[[Drawn, bool], Seen], shrinks: int) -> None:
        self._check = check
        self._seen: dict[Drawn, Seen] = {}
        self._left = shrinks
        self.smallest: Drawn | None = None

    def __call__(self, drawn: Drawn) -> None:
        if drawn not in self._seen:
            if self.smallest is not None:
                self._left -= 1
            if self._left < 0:
                raise _Enough
            self._seen[drawn] = self._check(drawn, self.smallest is not None)
        seen = self._seen[drawn]
        for label, value in seen.targets.items():
            target(value, label=label)
        if seen.fails:
            self.smallest = drawn
            raise _Found
