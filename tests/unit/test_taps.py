"""Taps: where they sit, what they replace, and what is said when they cannot."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.shadowed import draw
from parity.errors import TapError
from parity.execution.passes import OUTPUT, Runner
from parity.execution.tap import Point, Tap
from parity.execution.trace import Trace

X = draw(2, 3, 4)
Make = Callable[[Tensor, Tensor], Any]
Pair = namedtuple("Pair", "first second")


@dataclass
class Held:
    first: Tensor
    second: Tensor


class Output(OrderedDict[str, Any]):
    """As diffusers and transformers return: a mapping that is also read by attribute."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Layer(nn.Module):
    """Returns what it got and the double of it, in one structure or another."""

    def __init__(self, make: Make = lambda a, b: b) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Any:
        return self.make(x, x * 2)


class Model(nn.Module):
    def __init__(self, make: Make = lambda a, b: b, pick: Callable[[Any], Tensor] = lambda out: out) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Layer(), Layer(make)])
        self.head = Layer()
        self.pick = pick

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.pick(self.blocks[1](self.blocks[0](x))))
        return out


def runner(model: nn.Module, *taps: Tap, side: str = "reference") -> Runner:
    return Runner(side, model, lambda m, i: m(i["x"]), lambda out: out, taps)


def seen(model: nn.Module, point: Point) -> Trace:
    """Return the trace of a plain run with one tap."""
    return runner(model, Tap("tap", point, point)).run({"x": X})


def replaced(model: nn.Module, point: Point) -> Tensor:
    """Return the output where the tap's value is replaced by 100 times itself."""
    restart = lambda tap, value, number: value * 100  # noqa: E731
    return runner(model, Tap("tap", point, point)).run({"x": X}, restart).values[OUTPUT].low


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "near"), [("blocks.2", "blocks.1"), ("hed", "head"), ("block.0", "blocks.0")])
def test_a_missing_module_is_named_with_the_nearest_one(path: str, near: str) -> None:
    with pytest.raises(TapError, match=rf"(?s)tap tap: unknown reference module '{path}'.*did you mean '{near}'"):
        seen(Model(), Point(path))


def test_values_are_those_of_the_plain_forward() -> None:
    trace = seen(Model(), Point("blocks.1"))
    assert torch.equal(trace.values["tap"].low, X * 4)
    assert torch.equal(trace.values[OUTPUT].low, X * 8)
    assert list(trace.values) == ["tap", OUTPUT]
    assert trace.values["tap"].high is None


def test_the_model_itself_may_be_tapped() -> None:
    assert torch.equal(seen(Model(), Point("")).values["tap"].low, X * 8)
    assert torch.equal(seen(Model(), Point("", at="input")).values["tap"].low, X)


Read = tuple[Make, str, Callable[[Any], Tensor]]
STRUCTURES: dict[str, Read] = {
    "tuple": (lambda a, b: (a, b), "1", lambda o: o[1]),
    "from the end": (lambda a, b: (a, b), "-1", lambda o: o[-1]),
    "list": (lambda a, b: [a, b], "1", lambda o: o[1]),
    "dict": (lambda a, b: {"a": a, "b": b}, "b", lambda o: o["b"]),
    "namedtuple": (Pair, "1", lambda o: o.second),
    "dataclass": (Held, "second", lambda o: o.second),
    "mapping class": (lambda a, b: Output(sample=b, other=a), "sample", lambda o: o.sample),
    "nested": (lambda a, b: (a, {"b": [Held(a, b)]}), "1.b.0.second", lambda o: o[1]["b"][0].second),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_an_element_is_found_and_replaced_in_a_structure_of_the_same_type(name: str) -> None:
    make, element, pick = STRUCTURES[name]
    kinds: list[type] = []
    made: list[Any] = []

    def keep(a: Tensor, b: Tensor) -> Any:
        made.append(make(a, b))
        return made[-1]

    def pick_and_note(out: Any) -> Tensor:
        kinds.append(type(out))
        return pick(out)

    model = Model(keep, pick_and_note)
    point = Point("blocks.1", element=element)
    assert torch.equal(seen(model, point).values["tap"].low, X * 4)
    assert torch.equal(replaced(model, point), X * 800)
    assert kinds == [type(made[0])] * 2
    assert torch.equal(pick(made[1]), X * 4), "what the module returned was changed in place"


def test_a_plain_object_is_read_but_not_rebuilt() -> None:
    model = Model(lambda a, b: SimpleNamespace(b=b), lambda out: out.b)
    point = Point("blocks.1", element="b")
    assert torch.equal(seen(model, point).values["tap"].low, X * 4)
    with pytest.raises(TapError, match="cannot replace element 'b' of a SimpleNamespace"):
        replaced(model, point)


@pytest.mark.parametrize(
    ("make", "element", "said"),
    [
        (lambda a, b: (a, b), "2", "no element '2' in a tuple of 2: Tensor, Tensor"),
        (lambda a, b: {"a": a}, "b", "no element 'b' in a mapping with keys a"),
        (lambda a, b: Held(a, b), "third", "no element 'third' in a Held"),
        (lambda a, b: (a, b), None, "found a tuple of 2: Tensor, Tensor, not a tensor"),
        (lambda a, b: (a, None), "1", "found a NoneType, not a tensor"),
    ],
)
def test_a_missing_element_is_named_with_what_is_there(make: Any, element: str | None, said: str) -> None:
    with pytest.raises(TapError, match=r"tap tap: reference blocks\.1") as raised:
        seen(Model(make, lambda out: X), Point("blocks.1", element=element))
    assert said in str(raised.value)


# --- inputs -----------------------------------------------------------------------------------------------------------


class Called(nn.Module):
    """Calls a layer with positional and keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, (x + 1, x + 2), shift=x + 3, rope={"cos": x + 4})
        return out


class Inner(nn.Module):
    def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], shift: Tensor, rope: dict[str, Tensor]) -> Tensor:
        return torch.stack([x, *pair, shift, rope["cos"]])


@pytest.mark.parametrize(
    ("element", "row"), [(None, 0), ("0", 0), ("1.0", 1), ("1.1", 2), ("shift", 3), ("rope.cos", 4)]
)
def test_inputs_are_tapped_by_position_or_keyword(element: str | None, row: int) -> None:
    point = Point("inner", at="input", element=element)
    plain = torch.stack([X + i for i in range(5)])
    assert torch.equal(seen(Called(), point).values["tap"].low, X + row)
    expected = plain.clone()
    expected[row] *= 100
    assert torch.equal(replaced(Called(), point), expected)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(TapError, match="no element 'gate' in a mapping with keys shift, rope"):
        seen(Called(), Point("inner", at="input", element="gate"))


# --- several calls ----------------------------------------------------------------------------------------------------


class Repeated(nn.Module):
    """One layer called for every row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Layer()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(x[:1]), self.inner(x[1:] + 1)])


def test_a_second_call_needs_to_be_asked_for() -> None:
    with pytest.raises(TapError, match=r"(?s)'inner' is called more than once.*call=\"all\""):
        seen(Repeated(), Point("inner"))


def test_all_calls_are_joined_along_the_first_dim() -> None:
    value = seen(Repeated(), Point("inner", call="all")).values["tap"]
    assert torch.equal(value.low, torch.cat([X[:1] * 2, X[1:] * 2 + 2]))
    assert value.parts == (1, 1)
    assert torch.equal(replaced(Repeated(), Point("inner", call="all")), value.low * 100)


@pytest.mark.parametrize("number", [0, 1])
def test_one_call_is_taken_by_its_number(number: int) -> None:
    plain = torch.cat([X[:1] * 2, X[1:] * 2 + 2])
    assert torch.equal(seen(Repeated(), Point("inner", call=number)).values["tap"].low, plain[number : number + 1])
    plain[number] *= 100
    assert torch.equal(replaced(Repeated(), Point("inner", call=number)), plain)


def test_a_call_that_does_not_happen_is_a_tap_never_reached() -> None:
    with pytest.raises(TapError, match="1 of 1 taps were never reached: tap"):
        seen(Repeated(), Point("inner", call=2))


def test_values_without_dims_are_joined_too() -> None:
    model = Repeated()
    model.inner.make = lambda a, b: b.sum()
    model.forward = lambda x: torch.stack([model.inner(x), model.inner(x + 1)])  # type: ignore[method-assign]
    assert seen(model, Point("inner", call="all")).values["tap"].low.shape == (2,)
