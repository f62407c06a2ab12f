"""Shadow execution, case by case: custom ops, attention, draws and RoPE."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from fixtures.shadowed import Program, broken, cases, distance, draw, engine, in_double, judged, shadowed, untrusted, up
from parity.errors import UsageError
from parity.execution import equivalents
from parity.execution.equivalents import EQUIVALENTS, Call, equivalent
from parity.execution.passes import OUTPUT, Runner
from parity.execution.rules import rule_of
from parity.execution.shadow import Shadow

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


# --- custom ops: trusted through a registered equivalent only ------------------------------------------------------------


@torch.library.custom_op("parity_cases::casting", mutates_args=())
def casting(x: Tensor, w: Tensor) -> Tensor:
    return (x.bfloat16() @ w.bfloat16().t()).to(x.dtype)


@torch.library.custom_op("parity_cases::refusing", mutates_args=())
def refusing(x: Tensor, w: Tensor) -> Tensor:
    assert x.dtype == torch.bfloat16
    return x @ w.t()


@torch.library.custom_op("parity_cases::writing", mutates_args=("x",))
def writing(x: Tensor, w: Tensor) -> None:
    x.copy_((x.bfloat16() @ w.bfloat16().t()).to(x.dtype))


@torch.library.custom_op("parity_cases::two", mutates_args=())
def two(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return x @ w.t(), x @ w


def call_casting(x: Tensor, w: Tensor) -> Tensor:
    out: Tensor = casting(x * 0.3, w)
    return out + 1


def call_refusing(x: Tensor, w: Tensor) -> Tensor:
    out: Tensor = refusing(x * 0.3, w)
    return out + 1


def call_writing(x: Tensor, w: Tensor) -> Tensor:
    h = x * 0.3
    writing(h, w)
    return h + 1


def call_two(x: Tensor, w: Tensor) -> Tensor:
    first, second = two(x * 0.3, w)
    return torch.stack([first, second]) + 1


def truth_linear(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x * 0.3, w) + 1


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, equivalents.Equivalent], None]:
    """Register equivalents for one test."""
    rule_of.cache_clear()

    def put(name: str, function: equivalents.Equivalent) -> None:
        monkeypatch.setitem(EQUIVALENTS, name, function)
        rule_of.cache_clear()

    return put


@pytest.fixture(autouse=True)
def forget_rules() -> Iterator[None]:
    yield
    rule_of.cache_clear()


@pytest.mark.parametrize("program", cases(call_casting, call_refusing, call_writing, call_two))
def test_a_custom_op_is_not_trusted(program: Program) -> None:
    untrusted(program, X, W, because="registered")


@pytest.mark.parametrize("program", cases(call_casting, call_refusing))
def test_a_registered_equivalent_makes_it_judged(
    program: Program, register: Callable[[str, equivalents.Equivalent], None]
) -> None:
    def linear(call: Call) -> list[Tensor]:
        assert call.low[0].dtype == torch.bfloat16
        return [call.high[0] @ call.high[1].t()]

    register(f"parity_cases::{program.__name__.removeprefix('call_')}", linear)
    judged(program, X, W, exact=truth_linear)


@engine("the equivalent of an op that writes is not called; the kernel runs on float64")
def test_a_registered_equivalent_of_an_op_that_writes_is_used(
    register: Callable[[str, equivalents.Equivalent], None],
) -> None:
    register("parity_cases::writing", lambda call: [call.high[0] @ call.high[1].t()])
    ran = shadowed(call_writing, X, W)
    assert bool(ran.high.isnan().all()) or distance(ran.high, in_double(truth_linear, X, W)) < 1e-14


def test_an_equivalent_of_another_shape_or_too_few_outputs_is_not_trusted(
    register: Callable[[str, equivalents.Equivalent], None],
) -> None:
    register("parity_cases::casting", lambda call: [call.high[0][:1]])
    untrusted(call_casting, X, W, because="gives another shape")
    register("parity_cases::two", lambda call: [call.high[0] @ call.high[1].t()])
    ran = shadowed(call_two, X, W)
    assert distance(ran.high[0], in_double(truth_linear, X, W)) < 1e-14
    assert bool(ran.high[1].isnan().all())


def test_an_equivalent_is_registered_once() -> None:
    with pytest.raises(UsageError, match="registered twice"):
        equivalent("aten::_softmax")(lambda call: [])


# --- attention -----------------------------------------------------------------------------------------------------------

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
    monkeypatch.setattr(torch, "softmax", lambda s, dim: (widths.append(s.shape[-2]), softmax(s, dim))[1])
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


OVERRIDEABLE = "_scaled_dot_product_fused_attention_overrideable"


@pytest.mark.usefixtures("fused_on_cpu")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", FUSED)
def test_the_arguments_of_fused_kernels_are_read(name: str, causal: bool, request: pytest.FixtureRequest) -> None:
    if name == OVERRIDEABLE and causal:
        request.applymarker(engine("is_causal is read one position too far"))
    bias = None if "flash" in name else draw(1, 1, 12, 12)
    mask = hidden(LOWER) if causal else torch.zeros(12, 12)

    def fused(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        return FUSED[name](q, k, v, bias[0] if bias else None, 0.0, causal)

    ran = shadowed(fused, Q, K, V, *([] if bias is None else [bias]))
    exact = by_hand(Q.double(), K.double(), V.double(), (mask if bias is None else mask + bias).double(), 0.3)
    assert distance(ran.high, exact) < 1e-14
    assert ran.shadow.kernels[f"aten::{name}"] == 1


@pytest.mark.usefixtures("fused_on_cpu")
@pytest.mark.parametrize("name", FUSED)
def test_dropout_inside_a_fused_kernel_is_not_trusted(name: str, request: pytest.FixtureRequest) -> None:
    if name == OVERRIDEABLE:
        request.applymarker(engine("dropout_p is looked for in another place"))
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
    out: tuple[Tensor, ...] = torch.ops.flash_attn_3.fwd(
        q, k, v, softmax_scale=0.3, is_causal=causal, window_size_left=left, softcap=softcap)  # fmt: skip
    return out[0] * 1


def tokens_first(t: Tensor) -> Tensor:
    return t.transpose(1, 2)


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize(
    ("entry", "causal", "left"),
    [
        (flash_2, False, -1),
        (flash_2, True, -1),
        pytest.param(flash_2, True, 3, marks=engine("the window of flash-attn 2 is not read")),
        pytest.param(flash_3, False, -1, marks=engine("flash-attn 3 is never judged: its schema can write")),
        pytest.param(flash_3, True, 3, marks=engine("flash-attn 3 is never judged: its schema can write")),
    ],
)
def test_flash_attention_entry_points_are_judged(entry: Callable[..., Tensor], causal: bool, left: int) -> None:
    """Masks are aligned to the bottom right, unlike those of `scaled_dot_product_attention`."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tokens_first(entry(tokens_first(q[:, :, :7]), tokens_first(k), tokens_first(v), causal, left))

    offset = torch.arange(12)[None] - torch.arange(7)[:, None] - 5
    mask = (offset <= (0 if causal else 12)) & (offset >= (-left if left >= 0 else -12))
    exact = by_hand(Q[:, :, :7].double(), K.double(), V.double(), hidden(mask).double(), 0.3)
    assert distance(shadowed(run, Q, K, V).high, exact) < 1e-14


@pytest.mark.usefixtures("flash_on_cpu")
@engine("options of flash-attn that the equivalent does not know are ignored")
def test_flash_attention_options_without_an_equivalent_are_not_trusted() -> None:
    untrusted(lambda q, k, v: flash_2(q, k, v, dropout=0.1), Q, K, V, because="dropout")


@pytest.mark.usefixtures("flash_on_cpu")
def test_flash_attention_3_with_softcap_is_not_trusted() -> None:
    untrusted(lambda q, k, v: flash_3(q, k, v, softcap=5.0), Q, K, V)


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


# --- draws and RoPE ------------------------------------------------------------------------------------------------------


def dropped(x: Tensor, w: Tensor) -> Tensor:
    return F.dropout(F.linear(x, w), 0.3, True) * 1


def dropped_in_place(x: Tensor, w: Tensor) -> Tensor:
    return F.dropout(F.linear(x, w), 0.5, True, inplace=True) * 1


def with_noise(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    return h + torch.randn_like(x, dtype=torch.bfloat16).to(h.dtype) + torch.empty(32, 16).uniform_().to(h.dtype)


def _kept(p: float) -> Tensor:
    torch.manual_seed(1)
    return F.dropout(torch.ones(32, 16, dtype=torch.bfloat16), p, True) != 0


def _noise() -> Tensor:
    torch.manual_seed(1)
    noise = torch.randn(32, 16, dtype=torch.bfloat16).double()
    return noise + torch.empty(32, 16, dtype=torch.float32).uniform_()


def test_both_sides_share_the_mask_or_the_noise() -> None:
    judged(dropped, X, W, exact=lambda x, w: F.linear(x, w) * _kept(0.3) / 0.7)
    judged(dropped_in_place, X, W, exact=lambda x, w: F.linear(x, w) * _kept(0.5) / 0.5)
    judged(with_noise, X, W, exact=lambda x, w: F.linear(x, w) + _noise())
    judged(lambda x, w: F.dropout(F.linear(x, w), 0.3, False, inplace=True) * 1, X, W)


def drop_off_in_inference(x: Tensor, w: Tensor) -> Tensor:
    with torch.inference_mode():
        return F.dropout(F.linear(x, w), 0.3, False, inplace=True) * 1


def noise_around_a_mean(x: Tensor, w: Tensor) -> Tensor:
    return torch.normal(up(F.linear(x, w)), 0.0)


@pytest.mark.parametrize(
    "program",
    [
        broken(drop_off_in_inference, "dropout_ reaches the mode whole: its low values become the truth"),
        broken(noise_around_a_mean, "normal(mean tensor) counts as an exact draw"),
    ],
)
def test_a_random_op_does_not_turn_its_input_into_the_truth(program: Program) -> None:
    ran = shadowed(program, X, W)
    assert bool(ran.high.isnan().all()) or distance(ran.high, in_double(program, X, W)) < 1e-14


ANGLES = torch.outer(torch.arange(32.0), 100.0 ** -(torch.arange(8.0) / 8))


def complex_rope(x: Tensor, angles: Tensor) -> Tensor:
    turned = torch.view_as_complex(up(x).reshape(32, 8, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(1).to(x.dtype)


def real_rope(x: Tensor, angles: Tensor) -> Tensor:
    cos, sin, a, b = angles.cos(), angles.sin(), up(x)[:, 0::2], up(x)[:, 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(1).to(x.dtype)


def conjugated_rope(x: Tensor, angles: Tensor) -> Tensor:
    turned = torch.view_as_complex(up(x).reshape(32, 8, 2)).conj() * torch.polar(torch.ones_like(angles), -angles)
    return torch.view_as_real(turned.conj().resolve_conj()).flatten(1).to(x.dtype)


@pytest.mark.parametrize("program", cases(complex_rope, real_rope, conjugated_rope))
def test_rope_in_complex_and_in_real_numbers_is_one_function(program: Program) -> None:
    judged(lambda x, angles: program(x * 0.3, angles), X, ANGLES, exact=lambda x, angles: real_rope(x * 0.3, angles))


def cast_seen_as_complex(x: Tensor, angles: Tensor) -> Tensor:
    return complex_rope(x, angles)


def complex_cast_seen_as_real(x: Tensor, turns: Tensor) -> Tensor:
    wide = turns.to(torch.complex128)
    return torch.view_as_real(wide).flatten(1) * x


def complex_cast_conjugated(x: Tensor, turns: Tensor) -> Tensor:
    return torch.view_as_real((turns.to(torch.complex128).conj() * 0.3).resolve_conj()).flatten(1) * x


CAST = "the cast of a root is read in the root's own geometry"


@pytest.mark.parametrize(
    "program", [broken(p, CAST) for p in (cast_seen_as_complex, complex_cast_seen_as_real, complex_cast_conjugated)]
)
def test_a_cast_of_a_root_may_be_seen_in_other_components(program: Program) -> None:
    second = ANGLES if program is cast_seen_as_complex else torch.polar(torch.ones_like(ANGLES), ANGLES)
    judged(program, X, second, limit=1e-15, rounds=program is cast_seen_as_complex)


def conjugate_written(x: Tensor, w: Tensor) -> Tensor:
    turned = torch.view_as_complex(up(F.linear(x, w)).reshape(32, 8, 2)) * 1
    turned.conj().mul_(0.5 + 1j)
    return torch.view_as_real(turned).flatten(1)


def imaginary_part_written(x: Tensor, w: Tensor) -> Tensor:
    turned = torch.view_as_complex(up(F.linear(x, w)).reshape(32, 8, 2)) * 1
    turned.conj().imag.add_(1)
    return torch.view_as_real(turned).flatten(1)


@pytest.mark.parametrize(
    "program",
    [broken(p, "a write through a conjugate view is not conjugated") for p in (conjugate_written, imaginary_part_written)],
)
def test_a_write_through_a_conjugate_view(program: Program) -> None:
    judged(program, X, W)
