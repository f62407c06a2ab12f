"""Shadow execution, case by case: attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from fixtures.shadowed import Program, distance, draw, judged, shadowed, up
from parity.execution import equivalents
from parity.execution.passes import OUTPUT, Runner
from parity.execution.shadow import Shadow

Q, K, V = draw(2, 4, 12, 8), draw(2, 4, 12, 8, seed=1), draw(2, 4, 12, 8, seed=2)
LOWER = torch.ones(12, 12, dtype=torch.bool).tril()


def by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    scores = up(q @ k.transpose(-1, -2)) * (scale or 1 / math.sqrt(q.shape[-1]))
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1).to(q.dtype) @ v


def hidden(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, -math.inf)


ATTENTION: dict[str, tuple[Program, Program]] = {
    "plain": (F.scaled_dot_product_attention, by_hand),
    "causal": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v: by_hand(q, k, v, hidden(LOWER)),
    ),
    "bool mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, LOWER[None, None]),
        lambda q, k, v: by_hand(q, k, v, hidden(LOWER)),
    ),
    "key mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, (torch.arange(12) < 7)[None, None, None]),
        lambda q, k, v: by_hand(q, k, v, hidden(torch.arange(12) < 7)),
    ),
    "computed bias": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, (q * k).sum(-1)[..., None].expand(2, 4, 12, 12)),
        lambda q, k, v: by_hand(q, k, v, (q * k).sum(-1)[..., None]),
    ),
    "scale": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.7),
        lambda q, k, v: by_hand(q, k, v, scale=0.7),
    ),
    "grouped heads": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k[:, ::2], v[:, ::2], enable_gqa=True),
        lambda q, k, v: by_hand(q, k[:, [0, 0, 2, 2]], v[:, [0, 0, 2, 2]]),
    ),
    "cross": (
        lambda q, k, v: F.scaled_dot_product_attention(q[:, :, :5], k, v, is_causal=True),
        lambda q, k, v: by_hand(q[:, :, :5], k, v, hidden(LOWER[:5])),
    ),
    "three dims": (
        lambda q, k, v: F.scaled_dot_product_attention(q[0], k[0], v[0]),
        lambda q, k, v: by_hand(q[0], k[0], v[0]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_judged_in_float64(name: str, inference: bool) -> None:
    program, hand = ATTENTION[name]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.inference_mode(inference):
            return program(q * 0.3, k, v) * 1

    ran = judged(run, Q, K, V, exact=lambda q, k, v: hand(q * 0.3, k, v))
    judged(lambda q, k, v: hand(q * 0.3, k, v), Q, K, V)
    assert name in ("grouped heads", "three dims") or any("flash" in kernel for kernel in ran.shadow.kernels)


@pytest.mark.parametrize("name", ["causal", "bool mask", "key mask", "computed bias"])
def test_attention_in_query_chunks_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shadowed(ATTENTION[name][0], Q, K, V).high
    widths, softmax = [], torch.softmax

    def watched(scores: Tensor, dim: int) -> Tensor:
        widths.append(scores.shape[-2])
        return softmax(scores, dim)

    monkeypatch.setattr(torch, "softmax", watched)
    monkeypatch.setitem(equivalents._SCORE_ELEMENTS, "cpu", 5 * 8 * 12)
    assert distance(shadowed(ATTENTION[name][0], Q, K, V).high, whole) < 1e-15
    assert widths == [5, 5, 2]


def test_attention_with_dropout_shares_the_mask_where_the_kernel_is_a_recipe() -> None:
    def by_hand_dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(1)
        kept = F.dropout(torch.ones(2, 4, 12, 12, dtype=torch.bfloat16), 0.5, True) != 0
        return ((q @ k.transpose(-1, -2)) / math.sqrt(8)).softmax(-1) * kept / 0.5 @ v

    def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5) * 1

    judged(dropped, Q, K, V, exact=by_hand_dropped)


class _Flex(nn.Module):
    def __init__(self, compiled: bool) -> None:
        super().__init__()
        self.attend = torch.compile(flex_attention) if compiled else flex_attention

    def forward(self, q: Tensor) -> Tensor:
        out: Tensor = self.attend(q, q, q)
        return out * 1


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_higher_order_op_runs_and_is_not_trusted(compiled: bool) -> None:
    q = draw(1, 2, 16, 16, dtype=torch.float32)
    shadow, model = Shadow(roots=[q]), _Flex(compiled)
    runner = Runner("native", model, lambda m, i: m(i["q"]), lambda out: out, ())
    trace = runner.run({"q": q}, None, shadow)
    assert trace.first_difference(runner.run({"q": q})) is None
    high = trace.values[OUTPUT].high
    assert high is not None
    assert bool(high.isnan().all())
    assert trace.kernels["flex_attention"] == 1
