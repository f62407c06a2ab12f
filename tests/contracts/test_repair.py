"""Counterfactual repair: the change that makes a faulty native the reference's function, with its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fixtures.pairs.longcat import PAIR, inputs_of
from fixtures.plants import PLANTS
from fixtures.plants_named import two_blocks
from fixtures.tiny import tiny_pair
from parity.diagnose.planting import after_load
from parity.diagnose.repaired import Repair
from parity.execution.changes import Change, ChangedForward, OpChange
from parity.execution.shadow import Shadow
from parity.pair import Build, ModelPair
from parity.run import Options, StateResult, run_state
from parity.session import PairSession
from parity.weights.keymap import KeyMap, rename
from parity.weights.load import tensors_of

BASE = replace(two_blocks(PAIR), inputs=partial(inputs_of, tokens=32))


def ran(pair: ModelPair, dtype: torch.dtype = torch.float32, lora: bool = False) -> StateResult:
    return run_state(PairSession(pair, Build(size=pair.sizes[0], dtype=dtype)), lora, Options(singles=0))


def repaired(result: StateResult) -> Repair:
    assert result.first_different is not None
    return result.explained.repairs[result.first_different]


NAMED = [
    ("eps_1e_5", "eps 1e-06 in `native_layer_norm`"),
    ("gelu_erf", "GELU (tanh) for `gelu`"),
    ("timestep_scale", "no 0.001 in `mul`"),
    ("scale_shift_swapped", "parts 0 and 1 of 6 exchanged"),
    ("scale_without_one", "`(1 + second)` for the second factor of `mul`"),
    ("rope_q_offset", "no 1 in `add`"),
    ("rope_axes", "parts 1 and 2 of `cat` exchanged"),
    ("rope_halves", "the channels of each head paired as neighbours"),
    ("q_norm_missing", "blocks.0.self_attn.q_norm behind `"),
    ("text_mask_ignored", "the mask `text_mask` on the keys"),
    ("softmax_scale", "the softmax scale head_dim^-0.5"),
    ("gate_omitted", "part 2 of 6 times operand 2 of `add`"),
    ("bias_dropped", "blocks.1.self_attn.to_out.bias added"),
    ("swiglu_swapped", "blocks.1.ffn.w1 and blocks.1.ffn.w3 exchanged"),
    ("swiglu_gelu", "SiLU for `gelu`"),
    ("output_sign", "no -1 in `mul`"),
    ("qk_swapped", "blocks.1.self_attn.to_q and blocks.1.self_attn.to_k exchanged"),
    ("cross_kv_swapped", "blocks.1.cross_attn.to_k and blocks.1.cross_attn.to_v exchanged"),
    ("out_transposed", "blocks.1.self_attn.to_out.weight transposed"),
    ("v_heads_rolled", "blocks.1.self_attn.to_v.weight rolled by -1 heads of rows"),
]


@pytest.mark.parametrize(("plant", "words"), NAMED, ids=[n[0] for n in NAMED])
def test_the_change_that_repairs_is_named(plant: str, words: str) -> None:
    """In bfloat16, where casts stand between the ops; `test_detection.py` names them in float32, by their repairs."""
    found = repaired(ran(PLANTS[plant].apply(BASE), torch.bfloat16))
    assert found.words.startswith(words)
    assert found.after < 1e-14
    assert found.before > 1e6 * found.after


def _gain(model: nn.Module) -> None:
    model.get_parameter("blocks.0.ln.weight").sub_(1.0)


def _columns(model: nn.Module) -> None:
    weight = model.get_parameter("blocks.1.down.weight")
    weight.copy_(torch.cat(weight.chunk(2, 1)[::-1], 1))


UNLISTED: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "a gain less one": (_gain, "blocks.0.ln.weight plus 1"),
    "chunks of columns": (_columns, "blocks.1.down.weight with its 2 chunks of columns reversed"),
}


@pytest.mark.parametrize("name", UNLISTED)
def test_bugs_of_the_same_kind_are_repaired_too(name: str) -> None:
    edit, words = UNLISTED[name]
    assert repaired(ran(after_load(tiny_pair(), edit))).words == words


def test_a_wrong_key_map_is_repaired_although_all_weights_are_what_it_says() -> None:
    def exchanged(build: Build) -> KeyMap:
        first, second = (rf"layers\.{i}\.fc1\.(.+)" for i in (0, 1))
        there = [rename(first, r"blocks.1.up.\1"), rename(second, r"blocks.0.up.\1")]
        return KeyMap((*there, *(r for r in tiny_pair().key_map(build).rules if "fc1" not in str(r))))

    found = repaired(ran(replace(tiny_pair(), key_map=exchanged)))
    assert found.words == "blocks.0.up and blocks.1.up exchanged"


def test_a_scale_of_an_adapter_is_found() -> None:
    """The port forgets alpha / rank; the factor is found, not listed."""
    pair = PLANTS["lora_alpha_ignored"].apply(BASE)
    result = ran(pair, lora=True)
    assert repaired(result).words.startswith("the second operand of `add` times 2 at ")


def test_a_layer_without_its_adapter_is_found() -> None:
    pair = PLANTS["lora_layer_missed"].apply(BASE)
    result = ran(pair, lora=True)
    assert repaired(result).words == "the LoRA applied to blocks.1.self_attn.to_q"


def test_what_no_change_repairs_is_left_without() -> None:
    assert ran(PLANTS["patch_order"].apply(BASE)).explained.repairs == {}


def test_a_healthy_pair_is_not_repaired() -> None:
    assert ran(BASE, torch.bfloat16).explained.repairs == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_model_is_left_bit_identical_whatever_happens(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = PairSession(after_load(tiny_pair(), _columns), Build(dtype=torch.float32))
    model = session.native.model
    before = {k: v.clone() for k, v in tensors_of(model).items()}
    calls = []

    def op(self: ChangedForward, number: int, func: Any, args: Any, kwargs: Any) -> Any:
        calls.append(number)
        if len(calls) == 40:
            raise error
        return func(*args, **kwargs)

    monkeypatch.setattr(ChangedForward, "op", op)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            run_state(session, False, Options(singles=0))
    else:
        run_state(session, False, Options(singles=0))
    assert len(calls) >= 40, "no repair was tried: this case proves nothing"
    assert all(torch.equal(v, before[k]) for k, v in tensors_of(model).items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()) == 0


def test_views_of_a_parameter_are_those_of_what_stands_for_it() -> None:
    torch.manual_seed(0)
    x, w, other = torch.randn(3, 4), torch.randn(8, 4), torch.randn(8, 4)
    shadow = Shadow(roots=[x, w, other])

    def program() -> Tensor:
        return F.linear(x, w[2:6]) + w.t().contiguous()[0, :4] + w.double().float().sum()

    with torch.no_grad(), shadow, ChangedForward(Change("", ((w, other),))):
        found = program()
    kept, w = w, other
    assert torch.equal(found, program())
    assert torch.allclose(shadow.high(found), program().double(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(kept, w)


def test_an_op_that_is_another_one_now_is_not_changed() -> None:
    x = torch.randn(4)
    with torch.no_grad(), ChangedForward(Change("", (), {0: OpChange("sin", result=lambda out: -out)})):
        assert torch.equal(x.cos(), torch.cos(x))
