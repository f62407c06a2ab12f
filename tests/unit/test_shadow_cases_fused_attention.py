"""Shadow execution, case by case: attention kernels of other devices and libraries, by their schemas.

Their kernels are stood in for on the CPU: what counts is which arguments the shadow reads, and where.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fixtures.shadowed import distance, draw, engine, shadowed, untrusted

Q, K, V = draw(2, 4, 12, 8), draw(2, 4, 12, 8, seed=1), draw(2, 4, 12, 8, seed=2)
LOWER = torch.ones(12, 12, dtype=torch.bool).tril()


def by_hand(bias: Tensor, rows: int = 12) -> Tensor:
    scores = Q[:, :, :rows].double() @ K.double().transpose(-1, -2) * 0.3
    return (scores + bias).softmax(-1) @ V.double()


def hidden(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)


Fused = Callable[[Tensor, Tensor, Tensor, Tensor | None, float, bool], Tensor]
_ATEN = torch.ops.aten
FUSED: dict[str, Fused] = {
    "_scaled_dot_product_flash_attention": lambda q, k, v, bias, p, causal: (
        _ATEN._scaled_dot_product_flash_attention(q, k, v, p, causal, scale=0.3)[0]),
    "_scaled_dot_product_efficient_attention": lambda q, k, v, bias, p, causal: (
        _ATEN._scaled_dot_product_efficient_attention(q, k, v, bias, False, p, causal, scale=0.3)[0]),
    "_scaled_dot_product_cudnn_attention": lambda q, k, v, bias, p, causal: (
        _ATEN._scaled_dot_product_cudnn_attention(q, k, v, bias, False, p, causal, scale=0.3)[0]),
    "_scaled_dot_product_fused_attention_overrideable": lambda q, k, v, bias, p, causal: (
        _ATEN._scaled_dot_product_fused_attention_overrideable(q, k, v, bias, p, causal, scale=0.3)[0]),
}  # fmt: skip


@pytest.fixture(scope="module")
def fused_on_cpu() -> Iterator[None]:
    """Stand in for the kernels other devices have: their arguments are what the shadow must read."""
    library = torch.library.Library("aten", "IMPL")
    for name, call in FUSED.items():
        outputs = len(getattr(_ATEN, name).default._schema.returns)

        def kernel(q: Tensor, *others: object, outputs: int = outputs, **named: object) -> tuple[object, ...]:
            blank = torch.zeros(1)
            return (q * 2, *(blank.clone() for _ in range(outputs - 1)))

        library.impl(name, kernel, "CPU", allow_override=True)
        del call
    yield
    library._destroy()


@pytest.mark.usefixtures("fused_on_cpu")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", FUSED)
def test_the_arguments_of_fused_kernels_are_read(name: str, causal: bool) -> None:
    bias = None if "flash" in name else draw(1, 1, 12, 12)
    mask = hidden(LOWER) if causal else torch.zeros(12, 12)

    def fused(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        return FUSED[name](q, k, v, bias[0] if bias else None, 0.0, causal)

    ran = shadowed(fused, Q, K, V, *([] if bias is None else [bias]))
    exact = by_hand(mask if bias is None else mask + bias)
    assert distance(ran.high, exact) < 1e-14
    assert ran.shadow.kernels[f"aten::{name}"] == 1


@pytest.mark.usefixtures("fused_on_cpu")
@pytest.mark.parametrize("name", FUSED)
def test_dropout_inside_a_fused_kernel_is_not_trusted(name: str) -> None:
    untrusted(lambda q, k, v: FUSED[name](q, k, v, None, 0.1, False), Q, K, V, because="with dropout")


FLASH_2 = (
    "_flash_attn_forward(Tensor q, Tensor k, Tensor v, float dropout_p, float softmax_scale, bool causal, "
    "int window_size_left, int window_size_right, float softcap, Tensor? alibi_slopes, bool return_softmax)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
FLASH_3 = (
    "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new=None, Tensor(v_new!)? v_new=None, Tensor? q_v=None, "
    "Tensor(out!)? out=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None, "
    "Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None, "
    "Tensor? page_table=None, Tensor? kv_batch_idx=None, Tensor? leftpad_k=None, Tensor? rotary_cos=None, "
    "Tensor? rotary_sin=None, Tensor? seqlens_rotary=None, Tensor? q_descale=None, Tensor? k_descale=None, "
    "Tensor? v_descale=None, float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, "
    "int window_size_right=-1, int attention_chunk=0, float softcap=0.0) -> (Tensor(out!), Tensor, Tensor, Tensor)"
)


@pytest.fixture(scope="module")
def flash_on_cpu() -> Iterator[None]:
    """Define flash-attn's entry points with their real schemas."""
    with contextlib.ExitStack() as stack:
        for namespace, schema in (("flash_attn", FLASH_2), ("flash_attn_3", FLASH_3)):
            library = torch.library.Library(namespace, "FRAGMENT")
            stack.callback(library._destroy)
            library.define(schema)

            def kernel(q: Tensor, *others: object, **named: object) -> tuple[Tensor, ...]:
                return q * 2, *(torch.zeros(1) for _ in range(3))

            library.impl(schema.partition("(")[0], kernel, "CPU")
        yield


def flash_2(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, left: int = -1, dropout: float = 0.0) -> Tensor:
    out: tuple[Tensor, ...] = torch.ops.flash_attn._flash_attn_forward(
        q, k, v, dropout, 0.3, causal, left, -1, 0.0, None, False)  # fmt: skip
    return out[0] * 1


def flash_3(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, left: int = -1, softcap: float = 0.0) -> Tensor:
    """Call as its Python interface does, by position."""
    out: tuple[Tensor, ...] = torch.ops.flash_attn_3.fwd(q, k, v, *[None] * 20, 0.3, causal, left, -1, 0, softcap)
    return out[0] * 1


def tokens_first(t: Tensor) -> Tensor:
    return t.transpose(1, 2)


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize(
    ("entry", "causal", "left"),
    [
        (flash_2, False, -1),
        (flash_2, True, -1),
        (flash_2, True, 3),
        pytest.param(flash_3, False, -1, marks=engine("flash-attn 3 has its scale and masks at other positions")),
        pytest.param(flash_3, True, -1, marks=engine("flash-attn 3 has its scale and masks at other positions")),
        (flash_3, False, 3),
    ],
)
def test_flash_attention_entry_points_are_judged(entry: Callable[..., Tensor], causal: bool, left: int) -> None:
    """Masks are aligned to the bottom right, unlike those of `scaled_dot_product_attention`."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tokens_first(entry(tokens_first(q[:, :, :7]), tokens_first(k), tokens_first(v), causal, left))

    offset = torch.arange(12)[None] - torch.arange(7)[:, None] - 5
    mask = (offset <= (0 if causal else 12)) & (offset >= (-left if left >= 0 else -12))
    exact = by_hand(hidden(mask), 7)
    high = shadowed(run, Q, K, V).high
    assert distance(high, exact) < 1e-14 or (left >= 0 and bool(high.isnan().all()))


@pytest.mark.usefixtures("flash_on_cpu")
def test_flash_attention_options_without_an_equivalent_are_not_trusted() -> None:
    untrusted(lambda q, k, v: flash_2(q, k, v, dropout=0.1), Q, K, V, because="dropout")


@pytest.mark.usefixtures("flash_on_cpu")
def test_flash_attention_3_with_softcap_is_not_trusted() -> None:
    untrusted(lambda q, k, v: flash_3(q, k, v, softcap=5.0), Q, K, V)
