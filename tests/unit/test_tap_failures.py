"""Taps on functions, and what is said when a pass fails."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fixtures.shadowed import draw
from parity.errors import ModelFailed, TapError, UsageError
from parity.execution.hooks import TapHooks
from parity.execution.passes import OUTPUT, Runner
from parity.execution.tap import Point, Tap
from parity.execution.trace import Trace

X = draw(2, 3, 4)


class Calling(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x) + 1


class Model(nn.Module):
    """Three layers in a row, the middle one of which may fail."""

    def __init__(self, middle: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Calling(lambda x: x), Calling(middle), Calling(lambda x: x)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def runner(model: nn.Module, *taps: Tap, side: str = "reference") -> Runner:
    return Runner(side, model, lambda m, i: m(i["x"]), lambda out: out, taps)


def seen(model: nn.Module, point: Point) -> Trace:
    """Return the trace of a plain run with one tap."""
    return runner(model, Tap("tap", point, point)).run({"x": X})


def replaced(model: nn.Module, point: Point) -> Tensor:
    """Return the output where the tap's value is replaced by 100 times itself."""
    return runner(model, Tap("tap", point, point)).run({"x": X}, lambda tap, value, n: value * 100).values[OUTPUT].low


# --- functions --------------------------------------------------------------------------------------------------------

SOURCE = """
def double(x):
    return x * 2

class Kernels:
    def method(self, x):
        return x * 2
    @staticmethod
    def static(x):
        return x * 2
    @classmethod
    def of_class(cls, x):
        assert cls.__name__ == "Kernels"
        return x * 2

class Inherits(Kernels):
    pass
"""


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("parity_test_kernels")
    exec(SOURCE, module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


CALLS: dict[str, Callable[[types.ModuleType], Callable[[Tensor], Tensor]]] = {
    "double": lambda m: lambda x: m.double(x),
    "Kernels.method": lambda m: lambda x: m.Kernels().method(x),
    "Inherits.method": lambda m: lambda x: m.Inherits().method(x),
    "Kernels.static": lambda m: lambda x: m.Kernels().static(x),
    "Kernels.of_class": lambda m: lambda x: m.Kernels().of_class(x),
}
@pytest.mark.parametrize("path", list(CALLS))
def test_functions_are_tapped_and_put_back(path: str, kernels: types.ModuleType) -> None:
    before = {name: dict(vars(getattr(kernels, name))) for name in ("Kernels", "Inherits")} | {"double": kernels.double}
    model, point = Calling(CALLS[path](kernels)), Point(function=f"parity_test_kernels:{path}")
    assert torch.equal(seen(model, point).values["tap"].low, X * 2)
    assert torch.equal(replaced(model, point), X * 200 + 1)
    model.call = lambda x: 1 / 0  # type: ignore[assignment, return-value]
    with pytest.raises(ModelFailed):
        seen(model, point)
    after = {name: dict(vars(getattr(kernels, name))) for name in ("Kernels", "Inherits")} | {"double": kernels.double}
    assert after == before
    assert torch.equal(CALLS[path](kernels)(X), X * 2)


@pytest.mark.parametrize("where", [
    "parity_test_kernels:triple",
    "parity_test_kernels:Kernels.triple",
    "parity_test_kernels:Missing.double",
    "parity_no_such_module:double",
])  # fmt: skip
def test_a_missing_function_is_named(where: str, kernels: types.ModuleType) -> None:
    with pytest.raises(TapError, match=r"(?i)no function|no module"):
        seen(Calling(lambda x: x), Point(function=where))


# --- failures ---------------------------------------------------------------------------------------------------------


def test_taps_that_are_not_reached_are_an_error() -> None:
    model = Model()
    model.unused = Calling(lambda x: x)
    taps = [Tap("early", Point("blocks.0"), None), Tap("late", Point("unused"), Point("blocks.1"))]
    with pytest.raises(TapError, match="1 of 2 taps were never reached: late"):
        runner(model, *taps).run({"x": X})
    assert list(runner(model, *taps, side="native").run({"x": X}).values) == ["late", OUTPUT]


def test_a_tap_that_is_not_there_leaves_torch_compile_on() -> None:
    compiled = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Tensor]:
        nonlocal compiled
        compiled += 1
        return graph.forward

    torch.compiler.set_stance("default")
    try:
        with pytest.raises(TapError):
            seen(Model(), Point("blocks.7"))
        torch.compile(lambda x: x * 2, backend=backend)(X)
        assert compiled == 1
    finally:
        torch.compiler.set_stance("default")


def failing(error: BaseException) -> Model:
    def fail(x: Tensor) -> Tensor:
        raise error

    return Model(fail)


FIRST = Tap("block0", Point("blocks.0"), None)


def test_a_model_that_raises_is_said_to_with_the_last_tap() -> None:
    with pytest.raises(ModelFailed, match="the reference raised after block0: ValueError: no such head"):
        runner(failing(ValueError("no such head")), FIRST).run({"x": X})
    with pytest.raises(ModelFailed, match="the reference raised after its start: ValueError"):
        runner(failing(ValueError("no such head"))).run({"x": X})


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried 9 GiB\nmore", ""])
def test_running_out_of_memory_is_worded(text: str) -> None:
    with pytest.raises(ModelFailed) as raised:
        runner(failing(torch.OutOfMemoryError(text)), FIRST).run({"x": X})
    lines = str(raised.value).splitlines()
    assert lines[0].startswith(f"the reference ran out of memory after block0: {text.partition(chr(10))[0]}")
    assert "smaller" in lines[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UsageError("as it is")])
def test_what_is_not_the_models_failure_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        runner(failing(error), FIRST).run({"x": X})
    assert raised.value is error


def test_an_output_that_is_no_tensor_is_an_error() -> None:
    side = Runner("native", Model(), lambda m, i: m(i["x"]), lambda out: {"sample": out}, ())  # type: ignore[arg-type, return-value]
    with pytest.raises(TapError, match="`output` gave a dict"):
        side.run({"x": X})


def test_an_output_may_have_no_dims() -> None:
    side = Runner("native", Model(), lambda m, i: m(i["x"]), lambda out: out.sum(), ())
    assert side.run({"x": X}).values[OUTPUT].low.dim() == 0


@pytest.mark.parametrize("error", [None, ValueError("stop")])
def test_no_hook_is_left_behind(error: ValueError | None) -> None:
    model = Model() if error is None else failing(error)
    taps = [FIRST, Tap("in", Point("blocks.1", at="input"), None)]
    hooks = TapHooks(model, taps, "reference", lambda tap, value, number: None)
    with contextlib.suppress(ValueError), hooks.attached():
        assert any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        model(X)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert hooks.calls["in"] == 1
