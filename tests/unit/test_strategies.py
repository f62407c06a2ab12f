"""Every dimension is drawn, what fails shrinks to the plainest, and profiles draw as they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import find, settings

from parity.space import Drawn, InputSpace, Span, outside
from parity.strategies import CLIMBS_FROM, Profile, Seen, drawn_inputs, explore, scales

SPACE = InputSpace(
    frames=Span(1, 4), height=Span(2, 8, 2), width=Span(2, 12, 2), text=Span(0, 12), per_frame=True, conditioning=2,
    guidance=(1.0, 9.0), outliers=16,
)  # fmt: skip
SMALLEST = Drawn(text_lengths=(1,), timesteps=((0.37,),))
Holds = Callable[[Drawn], bool]
Targets = Callable[[Drawn], "dict[str, float]"]
WANTED: dict[str, Holds] = {
    "one sample": lambda d: d.batch == 1,
    "three samples": lambda d: d.batch == 3,
    "several frames": lambda d: d.frames == 4,
    "portrait": lambda d: d.height > d.width,
    "landscape": lambda d: d.height < d.width,
    "odd tokens": lambda d: d.frames * d.height * d.width // 4 % 2 == 1,
    "ragged text": lambda d: len(set(d.text_lengths)) > 1,
    "full text": lambda d: 12 in d.text_lengths,
    "one token": lambda d: 1 in d.text_lengths,
    "no text": lambda d: 0 in d.text_lengths,
    "timestep per frame": lambda d: d.per_frame,
    "timesteps of rows differ": lambda d: len(set(d.timesteps)) > 1,
    "fraction of a timestep": lambda d: any(step % 1 for steps in d.timesteps for step in steps),
    "whole timestep above 256": lambda d: any(step > 256 and step % 2 == 1 for steps in d.timesteps for step in steps),
    "two conditioning frames": lambda d: d.conditioning == 2,
    "guidance": lambda d: d.guidance is not None,
    "large": lambda d: d.scale == 30.0,
    "small": lambda d: d.scale == 1e-3,
    "outliers": lambda d: len(d.outliers) == 2,
    "mixed ranks": lambda d: len(set(d.ranks)) > 1,
    "alpha other than the rank": lambda d: bool(d.ranks) and d.alpha not in d.ranks,
    "an earlier call of the same size": lambda d: any(b.width == d.width for b in d.before),
    "an earlier call of another size": lambda d: any(b.width != d.width for b in d.before),
    "a seed": lambda d: d.seed > 0,
}


def collected(
    profile: Profile, lora: bool = False, space: InputSpace = SPACE, targets: Targets = lambda drawn: {}
) -> list[Drawn]:
    found: list[Drawn] = []

    def check(drawn: Drawn, again: bool) -> Seen:
        found.append(drawn)
        return Seen(False, targets(drawn))

    explore(space, check, profile, lora)
    return found


@pytest.mark.parametrize("wanted", WANTED)
def test_dimension_is_drawn(wanted: str) -> None:
    found = explore(SPACE, lambda d, again: Seen(WANTED[wanted](d), {}), Profile(200, "ci", shrinks=0), lora=True)
    assert found is not None


def test_what_is_drawn_is_in_the_space() -> None:
    assert [drawn for drawn in collected(Profile(100, "ci"), lora=True) if outside(SPACE, drawn)] == []


def test_nothing_is_drawn_that_a_pair_does_not_vary() -> None:
    plain = InputSpace(Span(1, 1), Span(2, 4, 2), Span(2, 4, 2), calls=1)
    for drawn in collected(Profile(50, "ci"), space=plain):
        assert (drawn.text_lengths, drawn.ranks, drawn.before, drawn.outliers) == ((), (), (), ())
        assert (drawn.conditioning, drawn.guidance) == (0, None)
        assert not drawn.per_frame


def test_everything_shrinks_to_the_smallest_latent() -> None:
    assert find(drawn_inputs(SPACE, lora=True), lambda drawn: True, settings=settings(database=None)) == SMALLEST


@pytest.mark.parametrize(
    ("holds", "smallest"),
    [
        (lambda d: d.batch > 1, {"batch": 2, "height": 2, "width": 2, "frames": 1, "before": ()}),
        (lambda d: d.height > d.width, {"batch": 1, "height": 4, "width": 2, "frames": 1}),
        (lambda d: d.per_frame, {"batch": 1, "frames": 2, "height": 2, "width": 2}),
        (lambda d: d.conditioning > 0, {"batch": 1, "frames": 2, "conditioning": 1, "guidance": None}),
        (lambda d: d.scale > 1, {"batch": 1, "frames": 1, "scale": 30.0, "outliers": ()}),
        (lambda d: bool(d.before), {"batch": 1, "frames": 1, "height": 2, "width": 2}),
        (lambda d: 12 in d.text_lengths, {"batch": 1, "text_lengths": (12,), "frames": 1}),
    ],
)
def test_failing_input_shrinks_to_what_it_takes(holds: Holds, smallest: dict[str, object]) -> None:
    found = explore(SPACE, lambda drawn, again: Seen(holds(drawn), {}), Profile(100, "ci", shrinks=200))
    assert found is not None
    assert {name: getattr(found, name) for name in smallest} == smallest


def test_shrinking_has_an_end() -> None:
    runs: list[bool] = []

    def check(drawn: Drawn, again: bool) -> Seen:
        runs.append(again)
        return Seen(drawn.batch > 1, {})

    assert explore(SPACE, check, Profile(50, "ci", shrinks=7)) is not None
    assert 0 < sum(runs) <= 7


def test_each_input_is_run_once() -> None:
    found = collected(Profile(60, "ci"))
    assert len(found) == len(set(found))


def test_ci_draws_the_same_each_time() -> None:
    assert collected(Profile(12, "ci")) == collected(Profile(12, "ci", seed=5))
    assert collected(Profile(12, "local", seed=5)) == collected(Profile(12, "local", seed=5))
    assert collected(Profile(12, "local", seed=5)) != collected(Profile(12, "local", seed=6))


def test_more_examples_begin_with_the_same() -> None:
    assert collected(Profile(20, "ci"))[:8] == collected(Profile(30, "ci"))[:8]


def test_many_examples_climb() -> None:
    def best(targets: Targets) -> float:
        return max(drawn.seed for drawn in collected(Profile(3 * CLIMBS_FROM, "ci"), targets=targets))

    climbed = best(lambda drawn: {"seed": float(drawn.seed)})
    assert climbed == 999
    assert climbed >= best(lambda drawn: {})


def test_side_that_fails_at_random_is_reported_all_the_same() -> None:
    outcomes = iter([False, True] + [False] * 500)
    found = explore(SPACE, lambda drawn, again: Seen(next(outcomes), {}), Profile(10, "ci", shrinks=3))
    assert found is not None


def test_scales_begin_with_one_and_reach_the_ends() -> None:
    assert scales(SPACE) == [1.0, 30.0, 1e-3, 10.0, 1e-2, 0.1]
    assert scales(InputSpace(Span(1, 1), Span(1, 1), Span(1, 1), scale=(2.0, 3.0))) == [3.0, 2.0]
