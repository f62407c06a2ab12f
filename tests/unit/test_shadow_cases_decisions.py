"""Shadow execution, case by case: decisions made of floats. The low side decides, the native replays the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fixtures.shadowed import Program, broken, cases, distance, draw, in_double, shadowed
from parity.execution.decisions import Decisions
from parity.execution.shadow import Shadow

Choose = Callable[[Tensor, Tensor], Tensor]
LOGITS, GATE = draw(1500, 32, seed=3), draw(8, 32, seed=4, scale=0.2)
TABLE = draw(8, 8, seed=5)


def by_argmax(h: Tensor, table: Tensor) -> Tensor:
    return table[h.argmax(-1)] + h


def by_max(h: Tensor, table: Tensor) -> Tensor:
    found = h.max(-1)
    return found.values[:, None] * table[found.indices]


def by_min_kept(h: Tensor, table: Tensor) -> Tensor:
    found = h.min(1, keepdim=True)
    return found.values * table[found.indices[:, 0]]


def by_topk(h: Tensor, table: Tensor) -> Tensor:
    found = h.topk(2)
    return (found.values.softmax(-1)[..., None] * table[found.indices]).sum(1)


def by_sort(h: Tensor, table: Tensor) -> Tensor:
    values, order = h.sort(-1, descending=True)
    return values * table[order[:, 0]]


def by_stable_sort(h: Tensor, table: Tensor) -> Tensor:
    values, order = torch.sort(h, stable=True, dim=-1)
    return values * table[order[:, 0]]


def by_argsort(h: Tensor, table: Tensor) -> Tensor:
    return table[h.argsort(-1)[:, 0]] + h


def by_kth(h: Tensor, table: Tensor) -> Tensor:
    found = h.kthvalue(3, -1)
    return found.values[:, None] * table[found.indices]


def by_median(h: Tensor, table: Tensor) -> Tensor:
    found = h.median(-1)
    return found.values[:, None] * table[found.indices]


def by_comparison(h: Tensor, table: Tensor) -> Tensor:
    return torch.where(h > h.roll(1, -1), h + table[0], -h)


def by_masked_fill(h: Tensor, table: Tensor) -> Tensor:
    return h.masked_fill(h <= h.roll(3, -1), 0.3) @ table


CHOICES = [
    by_argmax, by_max, by_min_kept, by_topk, by_sort, by_stable_sort, by_argsort, by_kth, by_median, by_comparison,
    by_masked_fill,
]  # fmt: skip


def whole(choose: Choose) -> Program:
    return lambda x, gate, table: choose(F.linear(x, gate), table)


def split_k(choose: Choose) -> Program:
    """The same product in two halves, added in bf16: another rounding, the same function."""
    return lambda x, gate, table: choose(F.linear(x[:, :16], gate[:, :16]) + F.linear(x[:, 16:], gate[:, 16:]), table)


@pytest.mark.parametrize("choose", [pytest.param(c, id=c.__name__) for c in CHOICES])
def test_the_native_takes_the_references_decisions(choose: Choose) -> None:
    reference = shadowed(whole(choose), LOGITS, GATE, TABLE)
    alone = shadowed(split_k(choose), LOGITS, GATE, TABLE)
    assert distance(alone.high, reference.high) > 1e-6, "no decision differs: this case proves nothing"

    own = [t.clone() for t in (LOGITS, GATE, TABLE)]
    replaying = Decisions(replayed=reference.shadow.decisions)
    with torch.no_grad(), Shadow(roots=own, decisions=replaying) as shadow:
        out = split_k(choose)(*own)
    assert distance(shadow.high(out), reference.high) < 1e-14
    assert distance(out, reference.low) < 0.1, "the low side goes on with the replayed decisions too"
    assert replaying.flips[""] > 0
    assert not replaying.unmatched


def test_the_low_side_decides() -> None:
    ran = shadowed(lambda x, gate, table: table[F.linear(x, gate).argmax(-1)], LOGITS, GATE, TABLE)
    low, high = F.linear(LOGITS, GATE).argmax(-1), F.linear(LOGITS.double(), GATE.double()).argmax(-1)
    assert bool((low != high).any()), "both decide alike: this case proves nothing"
    assert torch.equal(ran.high, TABLE.double()[low])
    assert ran.shadow.decisions.count == 1


def test_what_a_sort_moved_follows_the_low_order() -> None:
    ran = shadowed(lambda x, gate: F.linear(x, gate).sort(-1, descending=True).values, LOGITS, GATE)
    order = F.linear(LOGITS, GATE).sort(-1, descending=True).indices
    assert distance(ran.high, F.linear(LOGITS.double(), GATE.double()).gather(-1, order)) < 1e-15


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": lambda h: h.floor(),
    "ceil": lambda h: h.ceil(),
    "trunc": lambda h: h.trunc(),
    "round": lambda h: h.round(),
    "sign": lambda h: (h - h.roll(1)).sign(),
    "div floor": lambda h: torch.div(h, 0.3, rounding_mode="floor"),
    "div trunc": lambda h: torch.div(h, 0.3, rounding_mode="trunc"),
    "floor_divide": lambda h: h // 0.3,
    "floor_": lambda h: (h * 1).floor_(),
    "round_": lambda h: (h * 1).round_(),
    "div_ floor": lambda h: (h * 1).div_(0.3, rounding_mode="floor"),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_the_low_sides(name: str) -> None:
    def program(x: Tensor, gate: Tensor) -> Tensor:
        return STEPS[name](F.linear(x, gate) * 8)

    ran = shadowed(program, LOGITS, GATE)
    assert torch.equal(ran.high, ran.low.double())
    assert not torch.equal(ran.high, in_double(program, LOGITS, GATE)), "both decide alike: this case proves nothing"


def into_topk(x: Tensor, gate: Tensor) -> Tensor:
    values, indices = x.new_empty(1500, 2), torch.empty(1500, 2, dtype=torch.long)
    torch.topk(F.linear(x, gate), 2, out=(values, indices))
    return torch.cat([values, indices.to(x.dtype)], -1)


def into_max(x: Tensor, gate: Tensor) -> Tensor:
    values, indices = x.new_empty(1500), torch.empty(1500, dtype=torch.long)
    torch.max(F.linear(x, gate), 1, out=(values, indices))
    return torch.stack([values, indices.to(x.dtype)], -1)


def into_sort(x: Tensor, gate: Tensor) -> Tensor:
    values, indices = x.new_empty(0), torch.empty(0, dtype=torch.long)
    torch.sort(F.linear(x, gate), 1, out=(values, indices))
    return torch.cat([values, indices.to(x.dtype)], -1)


@pytest.mark.parametrize(
    "program",
    [*cases(into_topk, into_max), broken(into_sort, "values sorted into resized memory lose their order in high")],
)
def test_integers_written_by_out_arguments_stay_the_low_ones(program: Program) -> None:
    ran = shadowed(program, LOGITS, GATE)
    truth = in_double(lambda x, gate: F.linear(x, gate), LOGITS, GATE)
    picked = ran.high.shape[1] // 2
    order = ran.low[:, picked:].long()
    assert distance(ran.high[:, :picked], truth.gather(1, order)) < 1e-14


def test_a_running_maximum_is_continuous_and_its_indices_are_the_low_ones() -> None:
    def into_cummax(x: Tensor, gate: Tensor) -> Tensor:
        values, indices = x.new_empty(1500, 8), torch.empty(1500, 8, dtype=torch.long)
        torch.cummax(F.linear(x, gate), 1, out=(values, indices))
        return torch.cat([values, indices.to(x.dtype)], -1)

    ran = shadowed(into_cummax, LOGITS, GATE)
    truth = in_double(lambda x, gate: F.linear(x, gate), LOGITS, GATE)
    assert distance(ran.high[:, :8], truth.cummax(1).values) < 1e-14
    assert torch.equal(ran.high[:, 8:], ran.low[:, 8:].double())


def test_decisions_are_replayed_by_segment_in_order_and_by_shape() -> None:
    scores = draw(64, 8, dtype=torch.float32)

    def decide(decisions: Decisions, *plan: tuple[str, Tensor]) -> list[Tensor]:
        with torch.no_grad(), Shadow(roots=[scores], decisions=decisions) as shadow:
            found = []
            for segment, values in plan:
                shadow.begin_segment(segment)
                found.append(values.argmax(-1))
        return found

    other = -scores
    first = Decisions()
    decide(first, ("a", scores), ("a", other), ("b", scores[:32]), ("c", other))
    replaying = Decisions(replayed=first)
    took = decide(replaying, ("c", scores), ("b", scores), ("a", other), ("a", other), ("d", scores))
    expected = [other, scores, scores, other, scores]
    assert all(torch.equal(t, e.argmax(-1)) for t, e in zip(took, expected, strict=True))
    assert dict(replaying.flips) == {"a": 64, "c": 64}
    assert dict(replaying.unmatched) == {"b": 1, "d": 1}


def test_decisions_of_integers_are_nobodys_rounding() -> None:
    recorded = Decisions()
    with Shadow(decisions=recorded):
        torch.arange(9).argmax()
        _ = torch.arange(9) > 3
    assert recorded.count == 0
