"""What values cannot tell, constants and drowned gains, is placed by its weight, its values' drift and its name."""

from __future__ import annotations

import torch

from fixtures.checkpoints import State, Trained, noisy
from fixtures.matching import matched, planned
from parity.weights.matching.likeness import Likeness
from parity.weights.names import stacks_of, templated
from parity.weights.proposal import proposed


def pair(gain: str) -> tuple[State, State, dict[str, str]]:
    """Fused projections of two streams, cut in the native, with gains and biases that tell little or nothing."""
    made, reference, native = Trained(3), State(), State()
    names: dict[str, str] = {}
    for block in range(2):
        for stream, other in (("img", "to_{}"), ("txt", "add_{}_proj")):
            at = f"double.{block}.{stream}_attn"
            reference |= {f"{at}.qkv.weight": made.matrix(192, 64), f"{at}.qkv.bias": torch.zeros(192)}
            for n, x in enumerate("qkv"):
                for name in ("weight", "bias"):
                    key = f"blocks.{block}.attn.{other.format(x)}.{name}"
                    native[key] = reference[f"{at}.qkv.{name}"].chunk(3)[n].clone()
                    names[key] = f"{at}.qkv.{name}"
            for x, word in (("q", "query"), ("k", "key")):
                key = f"blocks.{block}.attn.norm_{'added_' * (stream == 'txt')}{x}.weight"
                names[key] = f"{at}.norm.{word}_norm.scale"
                value = reference[names[key]] = torch.ones(24) if gain == "ones" else made.gain(24)
                native[key] = value if gain == "ones" else noisy(value, 0.05, len(names))
    return reference, native, names


def test_zero_biases_and_unit_gains_follow_their_weights_and_names() -> None:
    reference, native, names = pair("ones")
    entries = matched(reference, native)
    assert {entry["native"]: entry["reference"] for entry in entries} == names
    made = planned(entries, reference, native).native_tensors(reference)
    assert all(torch.equal(made[key], native[key]) for key in native)


def test_short_gains_are_told_apart_by_what_noise_leaves_of_them() -> None:
    reference, native, names = pair("noisy")
    entries = matched(reference, native)
    assert {entry["native"]: entry["reference"] for entry in entries} == names


def test_rows_of_a_table_in_another_order() -> None:
    table, weight = Trained(4).matrix(6, 64).view(1, 6, 64), Trained(5).matrix(64, 64)
    reference = {"head.table": table, "head.weight": weight}
    native = {"out.table": table[:, [1, 0, 2, 4, 3, 5]], "out.weight": weight}
    entries = matched(reference, native)
    assert {entry["reference"]: entry["relation"] for entry in entries}["head.table"] == "permute rows"
    assert torch.equal(planned(entries, reference, native).native_tensors(reference)["out.table"], native["out.table"])


def test_likeness_is_learned_from_pairs() -> None:
    likeness = Likeness([("b.*.add_q_proj", "d.*.txt_qkv"), ("b.*.to_q", "d.*.img_qkv"), ("b.*.ff", "d.*.img_mlp")])
    assert likeness.score("b.*.norm_added_k", "d.*.txt_key") > likeness.score("b.*.norm_added_k", "d.*.img_key")
    assert likeness.score("b.*.norm_k", "d.*.key_norm") > likeness.score("b.*.norm_k", "d.*.query_norm")


def test_blocks_whose_number_is_glued_to_a_word_are_a_stack() -> None:
    names = ("q.weight", "k.weight", "v.weight")
    shapes = {f"net.blocks.block{n}.{name}": torch.Size([4, 4]) for n in range(3) for name in names}
    stacks = stacks_of({**shapes, "net.fc1.weight": torch.Size([4]), "net.fc2.weight": torch.Size([4])})
    assert [(stack.start, stack.count) for stack in stacks] == [("net.blocks.block", 3)]
    assert templated("net.blocks.block2.q.weight", stacks) == ("net.blocks.block*.q.weight", 2)


def test_names_alone_are_not_sure_of_what_others_could_be() -> None:
    shape = torch.Size([8])
    ours = {"txt_attn_proj.bias": shape, "q_norm.scale": shape, "k_norm.scale": shape}
    theirs = {"ff_context.bias": shape, "norm_q.scale": shape, "norm_k.scale": shape}
    found = {p.piece.reference: (p.piece.native, p.confidence) for p in proposed(ours, theirs)}
    assert found["q_norm.scale"][0] == "norm_q.scale"
    assert found["k_norm.scale"][0] == "norm_k.scale"
    assert "high" not in {confidence for _, confidence in found.values()}
