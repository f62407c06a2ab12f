"""Ids, `-k`, and that collection builds no model."""

from __future__ import annotations

import pytest

from fixtures.project import Project

RAISING = "PAIR = edited(tiny_pair({!r}), lambda model: 1 / 0)"


@pytest.mark.parametrize(
    ("expression", "ids"),
    [
        ("deep and block007 and up and lora_on", ["deep-block007-up-lora_on"]),
        ("block010 and norm and lora_off", ["deep-block010-norm-lora_off"]),
        ("block100 and norm and lora_off", ["deep-block100-norm-lora_off"]),
        ("deep and final_output", ["deep-final_output-lora_off", "deep-final_output-lora_on"]),
        ("deep and other", []),
    ],
)
def test_k_selects_by_words(project: Project, expression: str, ids: list[str]) -> None:
    project.pair("deep", "PAIR = tiny_pair('deep', depth=101, width=2)")
    project.pair("other")
    assert project.run("--collect-only", "-q", "-k", expression).ids == ids


def test_block_numbers_are_padded_to_the_last(project: Project) -> None:
    project.pair("deep", "PAIR = tiny_pair('deep', depth=48, width=2, lora=None)")
    blocks = {id.split("-")[1] for id in project.run("--collect-only", "-q", "-k", "norm").ids}
    assert blocks == {f"block{n:02d}" for n in range(48)}


def test_ids_name_pair_tap_lora_and_inputs_in_this_order(project: Project) -> None:
    project.pair("healthy", "PAIR = tiny_pair('healthy', depth=1, variants={'image': tiny_inputs})")
    ids = project.run("--collect-only", "-q").ids
    assert len(ids) == len(set(ids)) == 10 * 2 * 2
    assert ids[0] == "healthy-patch_embed-lora_off"
    assert ids[-1] == "healthy-final_output-lora_on-image"
    assert ids[3:8] == [f"healthy-block0{part}-lora_off" for part in ("-norm", "-up", "-act", "-down", "")]


def test_collection_builds_no_model(project: Project) -> None:
    project.pair("raising", RAISING.format("raising"))
    run = project.run("--collect-only", "-q")
    assert run.code == 0
    assert len(run.ids) == 30
    assert not run.has_record


def test_m_parity_selects_the_cases(project: Project) -> None:
    project.pair("healthy", "PAIR = tiny_pair('healthy', depth=1, lora=None)")
    project.pytester.makepyfile(test_other="def test_other(): pass")
    run = project.run("--collect-only", "-q", "-m", "parity")
    assert len(run.ids) == 10
    assert "test_other" not in run.text


def test_fixtures_split_the_cases_among_blocks_layers_and_the_rest(project: Project) -> None:
    names = ("block_case", "layer_case", "outer_case")
    project.suite = "\n".join(f"def test_{name}({name}, parity_check): pass" for name in names)
    project.pair("healthy", "PAIR = tiny_pair('healthy', lora=None)")
    run = project.run("--collect-only", "-q")
    counts = [sum(f"test_{name}[" in line for line in run.result.outlines) for name in names]
    assert counts == [2, 8, 5]


def test_the_word_case_stays_free_for_other_tests(project: Project) -> None:
    project.suite = """
        import pytest

        @pytest.fixture
        def block_case():
            return 3

        @pytest.mark.parametrize("case", [1, 2])
        def test_mine(case, block_case):
            assert case < block_case
    """
    assert project.run("-q").result.parseoutcomes() == {"passed": 2}
