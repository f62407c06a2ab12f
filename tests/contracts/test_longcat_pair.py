"""The bundled pair is healthy, shares no code, and every plant shows where it says it shows."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fixtures.models import longcat_native, longcat_native_layers, longcat_reference, longcat_reference_layers
from fixtures.pairs.longcat import PAIR, inputs_of
from fixtures.plants import PLANTS, Plant, native_with
from parity.execution.tap import Inputs, Point, Tap
from parity.lora.adapter import LoraAdapter
from parity.lora.apply import applied
from parity.lora.mapping import map_adapter
from parity.pair import Build, ModelPair
from parity.weights.plan import KeyPlan

TOKENS = 128
Taken = dict[str, Tensor]


def plan_of(reference: nn.Module, native: nn.Module) -> KeyPlan:
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (reference, native)]
    return PAIR.key_map(Build()).plan(*shapes)


def loaded(pair: ModelPair, build: Build) -> tuple[nn.Module, nn.Module]:
    reference, native = pair.reference.build(build), pair.native.build(build)
    if pair.load is not None:
        pair.load(reference.state_dict(), native)
    else:
        native.load_state_dict(plan_of(reference, native).native_tensors(reference.state_dict()))
    return reference, native


def taken_at(point: Point, args: tuple[Any, ...], out: Any) -> Tensor:
    value: Any = args[0] if point.at == "input" else out
    value = value[int(point.element)] if point.element else value
    assert isinstance(value, Tensor)
    return value.clone()


@contextmanager
def recorded(model: nn.Module, points: dict[str, Point], into: Taken) -> Iterator[None]:
    with ExitStack() as stack:
        for name, point in points.items():

            def hook(module: nn.Module, args: Any, out: Any, name: str = name, point: Point = point) -> None:
                into[name] = taken_at(point, args, out)

            handle = model.get_submodule(point.module or "").register_forward_hook(hook)
            stack.callback(handle.remove)
        yield


def native_lora(build: Build, reference: nn.Module, native: nn.Module) -> LoraAdapter:
    assert PAIR.lora is not None
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (reference, native)]
    return map_adapter(PAIR.lora(build, reference), PAIR.key_map(build), *shapes)


@torch.no_grad()
def native_values(pair: ModelPair, build: Build, given: Inputs, lora: bool) -> Taken:
    reference, native = loaded(pair, build)
    apply = pair.native.apply_lora or applied
    adapted = apply(native, native_lora(build, reference, native)) if lora else nullcontext()
    taken: Taken = {}
    points = {tap.name: tap.native for tap in pair.taps(build) if tap.native is not None}
    with adapted, recorded(native, points, taken), pair.native.around_call(native, given):
        pair.native.call(native, given)
    return taken


@cache
def healthy_values(dtype: torch.dtype, lora: bool) -> Taken:
    build = Build(dtype=dtype)
    return native_values(PAIR, build, inputs_of(build, 0, tokens=TOKENS, batch=2), lora)


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def planted(kinds: tuple[str, ...]) -> list[Any]:
    chosen = [plant for plant in PLANTS.values() if plant.kind in kinds]
    return [pytest.param(p, d, id=f"{p.name}-{str(d).split('.')[-1]}") for p in chosen for d in p.dtypes]


@pytest.mark.parametrize(("plant", "dtype"), planted(("precision", "logic")))
def test_plant_shows_first_where_it_says(plant: Plant, dtype: torch.dtype) -> None:
    build = Build(dtype=dtype)
    healthy = healthy_values(dtype, plant.lora)
    actual = native_values(plant.apply(PAIR), build, inputs_of(build, 0, tokens=TOKENS, batch=2), plant.lora)
    changed = [t for t in PAIR.taps(build) if not same(actual[t.name], healthy[t.name])]
    assert changed, "the plant changes nothing"
    assert changed[0].kind == plant.expect
    assert changed[-1].name == "final_output"


def same(actual: Tensor, expected: Tensor) -> bool:
    return actual.dtype == expected.dtype and torch.equal(actual, expected)


@pytest.mark.parametrize("plant", [p for p in PLANTS.values() if p.kind == "benign"], ids=lambda plant: plant.name)
def test_benign_plant_is_the_same_function_and_as_precise(plant: Plant) -> None:
    # Not nearness to the healthy native: a plant with a rounding too many is near too. Its own error tells.
    ratios = [error_of(plant.name, seed) / error_of("", seed) for seed in range(3)]
    assert sum(ratios) / 3 == pytest.approx(1.0, abs=0.04)
    if torch.float32 in plant.dtypes:
        build = Build(dtype=torch.float32)
        actual = native_values(plant.apply(PAIR), build, inputs_of(build, 0, tokens=TOKENS, batch=2), plant.lora)
        assert distance(actual["final_output"], healthy_values(build.dtype, plant.lora)["final_output"]) < 1e-5


def test_a_rounding_too_many_is_not_benign() -> None:
    ratios = [error_of("bias_rounded", seed) / error_of("", seed) for seed in range(3)]
    assert sum(ratios) / 3 > 1.04


@cache
def error_of(plant: str, seed: int) -> float:
    """The error of the native's bfloat16 output; "" is the healthy native."""
    build = Build(seed=seed)
    given = inputs_of(build, seed, tokens=TOKENS, batch=2)
    pair = PLANTS[plant].apply(PAIR) if plant else PAIR
    return distance(native_values(pair, build, given, lora=False)["final_output"], truth(seed))


@cache
def truth(seed: int) -> Tensor:
    """The reference on the same stored weights without bfloat16 roundings; its timestep rounds as it would have."""
    build = Build(seed=seed)
    given = inputs_of(build, seed, tokens=TOKENS, batch=2)
    given["timestep"] = given["timestep"].bfloat16().float()
    out: Tensor = PAIR.reference.call(PAIR.reference.build(build).double(), given)
    return out


@pytest.mark.parametrize("lora", [False, True], ids=["lora_off", "lora_on"])
@pytest.mark.parametrize("per_frame", [False, True], ids=["one_timestep", "per_frame"])
def test_healthy_native_equals_reference_at_every_tap(per_frame: bool, lora: bool) -> None:
    build = Build(dtype=torch.float32)
    given = inputs_of(build, 3, tokens=TOKENS, batch=2, per_frame=per_frame)
    reference, _ = loaded(PAIR, build)
    expected: Taken = {}
    assert PAIR.lora is not None
    adapted = applied(reference, PAIR.lora(build, reference)) if lora else nullcontext()
    points = {tap.name: tap.reference for tap in PAIR.taps(build) if tap.reference is not None}
    with torch.no_grad(), adapted, recorded(reference, points, expected):
        PAIR.reference.call(reference, given)
    actual = native_values(PAIR, build, given, lora)
    assert {t.name: at_tap(t, actual, expected, given) for t in PAIR.taps(build)} == {
        t.name: pytest.approx(0.0, abs=1e-5) for t in PAIR.taps(build)
    }


def at_tap(tap: Tap, actual: Taken, expected: Taken, given: Inputs) -> float:
    value = tap.layout.forward(actual[tap.name], expected[tap.name].shape)
    assert value.shape == expected[tap.name].shape
    if tap.valid is None:
        return distance(value, expected[tap.name])
    valid = tap.valid(given)
    return distance(value[valid], expected[tap.name][valid])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_key_map_is_total_and_goes_back(size: str, dtype: torch.dtype) -> None:
    reference, native = loaded(PAIR, Build(size=size, dtype=dtype))
    plan = plan_of(reference, native)
    assert plan.unused == ()
    back = plan.reference_tensors(native.state_dict())
    assert back.keys() == reference.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in reference.state_dict().items())


def test_native_without_weights_gives_nan() -> None:
    build = Build()
    out = PAIR.native.call(PAIR.native.build(build), inputs_of(build, 0, tokens=32))
    assert bool(out.isnan().all())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("side", ["reference", "native"])
def test_no_side_adds_a_bias_in_a_second_op(side: str, batch: int) -> None:
    build = Build()
    models = dict(zip(("reference", "native"), loaded(PAIR, build), strict=True))
    given = inputs_of(build, 0, tokens=32, batch=batch)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        getattr(PAIR, side).call(models[side], given)
    called = counter.get_flop_counts()["Global"]
    assert torch.ops.aten.addmm in called
    assert torch.ops.aten.bmm not in called


def test_sides_share_no_class() -> None:
    models = PAIR.reference.build(Build()), PAIR.native.build(Build())
    reference, native = ({type(m) for m in model.modules() if own(type(m).__module__)} for model in models)
    assert reference
    assert native
    assert not reference & native


def test_sides_import_no_common_code() -> None:
    reference = imported(longcat_reference) | imported(longcat_reference_layers)
    native = imported(longcat_native) | imported(longcat_native_layers)
    assert not reference & native


def imported(module: Any) -> set[str]:
    tree = ast.parse(inspect.getsource(module))
    return {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and own(n.module)}


def own(module: str) -> bool:
    return module.startswith(("fixtures", "parity"))


def test_weights_and_inputs_hide_nothing() -> None:
    build = Build(dtype=torch.float32)
    for name, value in PAIR.reference.build(build).state_dict().items():
        assert not torch.equal(value, value.bfloat16().float()), f"{name} is representable in bfloat16"
        neutral = 1.0 if "norm.weight" in name else 0.0
        assert float((value - neutral).abs().mean()) > 0.01, f"{name} is neutral"
    given = inputs_of(build, 0)
    assert float(given["timestep"]) % 1 != 0
    assert int(given["text_mask"].sum()) < given["text_mask"].numel()


def test_lora_changes_the_output() -> None:
    off, on = (healthy_values(torch.float32, lora)["final_output"] for lora in (False, True))
    assert 0.02 < distance(on, off) < 0.8


def test_blocks_limit_a_switch() -> None:
    build = Build()
    given = inputs_of(build, 0, tokens=TOKENS, batch=2)
    actual = native_values(native_with(PAIR, rope_fp32=False, blocks=frozenset({2})), build, given, lora=False)
    changed = [name for name, value in healthy_values(build.dtype, False).items() if not same(actual[name], value)]
    assert changed[0] == "block2.self_attn"
