"""Shadow execution, case by case: compiled modules, constants made while building, and stored weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fixtures.shadowed import distance, draw
from parity.execution.passes import OUTPUT, Runner
from parity.execution.roots import build_remembering, pruned, roots_of
from parity.execution.shadow import Shadow
from parity.execution.storage import ShadowTable

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


def run(
    model: Callable[[Tensor], Tensor], x: Tensor, memory: Sequence[ShadowTable] = (), as_stored: bool = False
) -> Tensor:
    """Return the shadow of a model's output."""
    roots = roots_of(model, x) if isinstance(model, nn.Module) else [x]
    with torch.no_grad(), Shadow(roots=roots, memory=memory, as_stored=as_stored) as shadow:
        out = model(x)
    return shadow.high(out)


# --- torch.compile ----------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.fc(x))


@pytest.mark.parametrize("how", ["torch.compile", "Module.compile", "inner module"])
def test_a_compiled_module_is_judged_eagerly(how: str) -> None:
    torch.compiler.set_stance("default")
    compiled = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Tensor]:
        nonlocal compiled
        compiled += 1
        return graph.forward

    eager = Layer()
    model: nn.Module = eager
    if how == "torch.compile":
        model = cast("nn.Module", torch.compile(eager, backend=backend))
    elif how == "Module.compile":
        eager.compile(backend=backend)
    else:
        inner: Any = torch.compile(eager, backend=backend)
        model = nn.Sequential(inner)
    shadow = Shadow(roots=roots_of(model, X))
    trace = Runner("native", model, lambda m, i: m(i["x"]), lambda out: out, ()).run({"x": X}, None, shadow)
    assert compiled == 0
    high = trace.values[OUTPUT].high
    assert high is not None
    weight, bias = (p.double() for p in eager.parameters())
    assert distance(high, F.gelu(F.linear(X.double(), weight, bias)).detach()) < 1e-14
    assert trace.ops == 2
    with torch.no_grad():
        model(X)
    assert compiled == 1, "it is compiled where nobody looks"
    torch._dynamo.reset()


# --- constants built in __init__, in the first call, or by a cached function ------------------------------------------


def frequencies() -> Tensor:
    return 1.0 / (100.0 ** (torch.arange(0, 16, dtype=torch.float32) / 16))


def frequencies_exact() -> Tensor:
    return 1.0 / (100.0 ** (torch.arange(0, 16, dtype=torch.float64) / 16))


class Rope(nn.Module):
    """A table in a buffer, one in a plain attribute, one in a dict, and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(W.clone())
        self.register_buffer("table", torch.outer(torch.arange(32.0), frequencies()).cos())
        self.held = frequencies()
        self.more = {"shift": frequencies() * 0.7}

    def forward(self, x: Tensor) -> Tensor:
        table = self.table
        assert isinstance(table, Tensor)
        return F.linear(x * table.to(x.dtype), self.weight) * self.held.to(x.dtype) + self.more["shift"].to(x.dtype)


def rope_exact() -> Tensor:
    f = frequencies_exact()
    table = torch.outer(torch.arange(32, dtype=torch.float64), f).cos()
    return F.linear(X.double() * table, W.double()) * f + f * 0.7


@pytest.fixture
def float32() -> Iterator[None]:
    yield
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bf16"])
def test_tables_built_under_the_mode_keep_their_exact_values(dtype: torch.dtype | None, float32: None) -> None:
    model, memory = build_remembering(lambda: Rope() if dtype is None else Rope().to(dtype))
    assert distance(run(model, X, [memory]), rope_exact()) < 1e-14
    stored = distance(run(model, X, [memory], as_stored=True), rope_exact())
    assert stored == distance(run(model, X), rope_exact())
    assert stored > (1e-9 if dtype is None else 1e-4)


def test_parameters_are_stored_values() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter((torch.arange(16) / 16.3).bfloat16())

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    model, memory = build_remembering(Scaled)
    weight = next(model.parameters())
    assert torch.equal(run(model, X, [memory]), X.double() * weight.double().detach())


def halve(model: Rope) -> None:
    model.get_buffer("table").mul_(0.5)


def halve_data(model: Rope) -> None:
    model.get_buffer("table").data.mul_(0.5)


def load(model: Rope) -> None:
    model.load_state_dict({"weight": W, "table": draw(32, 16, seed=4, dtype=torch.float32)})


def nudge(model: Rope) -> None:
    """By less than the rounding of a long float32 angle, but on purpose."""
    model.get_buffer("table").mul_(1 + 1e-5)


def replace(model: Rope) -> None:
    model.table = draw(32, 16, seed=4, dtype=torch.float32)


@pytest.mark.parametrize("change", [halve, halve_data, load, replace, nudge], ids=lambda c: c.__name__)
def test_a_later_write_drops_the_exact_values(change: Callable[[Rope], None]) -> None:
    built: list[Rope] = []

    def build() -> nn.Module:
        built.append(Rope())
        return built[0]

    _, memory = build_remembering(build)
    model = built[0]
    with torch.no_grad():
        change(model)
        pruned(memory, model)
    found = run(model, X, [memory])
    table = model.get_buffer("table").double()
    f = frequencies_exact()
    assert distance(found, F.linear(X.double() * table, W.double()) * f + f * 0.7) < 1e-14


def test_loading_the_same_table_keeps_its_exact_values() -> None:
    model, memory = build_remembering(Rope)
    model.load_state_dict(model.state_dict())
    pruned(memory, model)
    assert distance(run(model, X, [memory]), rope_exact()) < 1e-14


class Lazy(nn.Module):
    """A table made in the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] not in self.cache:
            self.cache[x.shape[0]] = frequencies().bfloat16()
        return x * self.cache[x.shape[0]]


@cache
def cached_table(width: int) -> Tensor:
    return frequencies()[:width].bfloat16()


def by_cached_function(x: Tensor) -> Tensor:
    return x * cached_table(16)


def test_tables_cached_in_the_first_call_are_remembered() -> None:
    cached_table.cache_clear()
    exact = X.double() * frequencies_exact()
    for model in (Lazy(), by_cached_function):
        with torch.no_grad(), Shadow(roots=[X]) as first:
            out = model(X)
        assert distance(first.high(out), exact) < 1e-14
        memory = [first.table]
        assert distance(run(model, X, memory), exact) < 1e-14
    forgotten = run(by_cached_function, X)
    assert bool(forgotten.isnan().all()), "made before the pass and by nobody known: not trusted"
    cached_table.cache_clear()


def test_a_remembered_table_may_be_written_in_the_pass() -> None:
    model = Lazy()
    with torch.no_grad(), Shadow(roots=[X]) as first:
        model(X)

    def write(x: Tensor) -> Tensor:
        model.cache[32].mul_(2)
        return cast("Tensor", model(x))

    assert distance(run(write, X, [first.table]), 2 * X.double() * frequencies_exact()) < 1e-14
    del model.cache[32]
    assert not first.table.entries, "what nobody holds is forgotten"


def test_large_tensors_of_a_build_are_exact() -> None:
    with Shadow(exact_above=100) as shadow:
        small, large = torch.arange(16) / 16.3, torch.arange(160) / 16.3
        large.mul_(0.3)
    assert distance(shadow.high(small), torch.arange(16, dtype=torch.float64) / 16.3) < 1e-15
    assert torch.equal(shadow.high(large), large.double())
