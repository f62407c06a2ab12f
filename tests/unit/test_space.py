"""The description of a drawn input: what it refuses, its one line, and what a space holds."""

from __future__ import annotations

import pytest

from parity.errors import UsageError
from parity.space import Drawn, InputSpace, Span, outside, parse_drawn, typical

SPACE = InputSpace(
    frames=Span(1, 4), height=Span(2, 8, 2), width=Span(2, 12, 2), text=Span(0, 12), per_frame=True, conditioning=2,
    guidance=(1.0, 9.0), outliers=16,
)  # fmt: skip
PLAIN = InputSpace(frames=Span(1, 1), height=Span(2, 4, 2), width=Span(2, 4, 2), calls=1)
FULL = Drawn(
    batch=2, frames=3, height=4, width=12, text_lengths=(12, 0), timesteps=((0.37, 1.0, 999.5), (5.0, 6.0, 7.0)),
    conditioning=1, guidance=5.5, scale=1e-3, outliers=(0, 15), ranks=(1, 8), alpha=6.5,
    before=(Drawn(text_lengths=(1,), seed=1003),), seed=7,
)  # fmt: skip


@pytest.mark.parametrize("drawn", [Drawn(), FULL, typical(SPACE)])
def test_line_makes_it_again(drawn: Drawn) -> None:
    assert parse_drawn(repr(drawn)) == drawn
    assert "\n" not in repr(drawn)


def test_line_leaves_out_what_is_as_usual() -> None:
    assert repr(Drawn()) == "Drawn(batch=1, frames=1, height=2, width=2, timesteps=((500.37,),), seed=0)"


@pytest.mark.parametrize(
    "text",
    [
        "", "Drawn(", "Drawn(2)", "drawn()", "Drawn(**{})", "Drawn(hight=3)", "Drawn(batch=int('1'))", "[Drawn()]",
        "Drawn(before=Drawn())", "Drawn(batch=0)", "Drawn(batch=2)", "Drawn(timesteps=((1.0, 2.0),))",
        "Drawn(text_lengths=(1, 2))", "Drawn(batch=2, frames=2, timesteps=((1.0,), (1.0, 2.0)))", "Drawn(batch='1')",
        "Drawn(timesteps=3)",
    ],
)  # fmt: skip
def test_what_is_no_such_line_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_drawn(text)
    assert len(str(error.value).splitlines()) <= 5


@pytest.mark.parametrize("drawn", [Drawn(text_lengths=(0,)), FULL, typical(SPACE)])
def test_space_holds(drawn: Drawn) -> None:
    assert outside(SPACE, drawn) is None


@pytest.mark.parametrize(
    ("drawn", "problem"),
    [
        (Drawn(batch=4, timesteps=((1.0,),) * 4, text_lengths=(1,) * 4), "batch 4"),
        (Drawn(height=3, text_lengths=(1,)), "height 3; valid: 2 to 8 in steps of 2"),
        (Drawn(text_lengths=(13,)), "text_lengths"),
        (Drawn(), "text_lengths"),
        (Drawn(timesteps=((1001.0,),), text_lengths=(1,)), "timesteps"),
        (Drawn(conditioning=1, text_lengths=(1,)), "1 conditioning frames; valid: 0 to 0"),
        (Drawn(guidance=0.5, text_lengths=(1,)), "guidance 0.5"),
        (Drawn(scale=float("nan"), text_lengths=(1,)), "scale nan"),
        (Drawn(outliers=(16,), text_lengths=(1,)), "outliers"),
        (Drawn(ranks=(0,), text_lengths=(1,)), "ranks"),
        (Drawn(before=(Drawn(height=3, text_lengths=(1,)),), text_lengths=(1,)), "before: height 3"),
        (Drawn(before=(Drawn(text_lengths=(1,)),) * 2, text_lengths=(1,)), "3 calls"),
    ],
)
def test_space_does_not_hold(drawn: Drawn, problem: str) -> None:
    assert problem in str(outside(SPACE, drawn))


@pytest.mark.parametrize(
    ("drawn", "problem"),
    [
        (Drawn(guidance=2.0), "guidance"),
        (Drawn(before=(Drawn(),)), "2 calls"),
        (Drawn(text_lengths=(1,)), "text_lengths"),
    ],
)
def test_what_a_pair_does_not_vary_is_outside(drawn: Drawn, problem: str) -> None:
    assert outside(PLAIN, Drawn()) is None
    assert problem in str(outside(PLAIN, drawn))


def test_frames_are_judged_one_by_one() -> None:
    assert "per frame" in str(outside(InputSpace(Span(1, 4), Span(2, 2), Span(2, 2)), Drawn(
        frames=2, timesteps=((1.0, 2.0),)
    )))  # fmt: skip


def test_typical_input_has_something_of_everything() -> None:
    drawn = typical(SPACE)
    assert drawn.batch > 1
    assert drawn.frames > 1
    assert drawn.height != drawn.width
    assert drawn.conditioning
    assert drawn.guidance is not None
    assert 0 < min(drawn.text_lengths) < 12
    assert typical(PLAIN).height <= 4


def test_empty_span_is_refused() -> None:
    with pytest.raises(UsageError):
        Span(3, 2)
