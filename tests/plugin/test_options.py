"""Every option takes effect where it says, and a wrong value is told with the nearest right one."""

from __future__ import annotations

import pytest

from fixtures.project import Project

SMALL = "PAIR = tiny_pair({!r}, depth=1, lora=None)"
ABSENT = """
p = tiny_pair("absent", depth=1, lora=None)
def build(wanted):
    raise SourceMissing("elsewhere is not on this machine\\nget it with: fetch elsewhere")
PAIR = replace(p, reference=replace(p.reference, source=Source("elsewhere.model", get="fetch elsewhere"), build=build))
"""
STATE = {"dtype": "bfloat16", "size": "tiny", "device": "cpu", "seed": 0, "draws": 1, "twins": 3}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), {"shadow_dtype": "float64"}),
        (("--parity-dtype", "float32"), {"dtype": "float32"}),
        (("--parity-size", "small"), {"size": "small"}),
        (("--parity-device", "cpu"), {}),
        (("--parity-seed=5", "--parity-draws=2", "--parity-twins=1"), {"seed": 5, "draws": 2, "twins": 1}),
        (("--parity-shadow-dtype", "float32"), {"shadow_dtype": "float32"}),
    ],
)
def test_option_is_in_the_record(project: Project, given: tuple[str, ...], expected: dict[str, object]) -> None:
    project.pair("small", SMALL.format("small"))
    run = project.run("-q", "-k", "patch_embed", *given)
    (state,) = run.record["pairs"]
    assert run.code == 0
    assert {key: state[key] for key in {**STATE, **expected}} == {**STATE, **expected}


def test_draws_take_the_next_seeds_and_twins_are_what_was_asked_for(project: Project) -> None:
    text = "inputs = lambda build, seed: (note(f'seed{seed}'), tiny_inputs(build, seed))[1]\n"
    project.pair("small", text + "PAIR = tiny_pair('small', depth=1, lora=None, inputs=inputs)")
    assert project.run("-q", "--parity-seed=5", "--parity-draws=3", "--parity-twins=1").code == 0
    assert project.noted == ["seed5", "seed6", "seed7"]


def test_size_and_dtype_reach_the_build(project: Project) -> None:
    text = "taps = lambda build: (note(f'{build.size}-{build.dtype}'), tiny_pair('x', depth=1).taps(build))[1]\n"
    project.pair("small", text + "PAIR = tiny_pair('small', depth=1, lora=None, taps=taps)")
    project.run("--collect-only", "--parity-size=small", "--parity-dtype=float16")
    assert set(project.noted) == {"small-torch.float16"}


def test_shadow_dtype_sets_the_limit_of_logic(project: Project) -> None:
    project.pair("small", SMALL.format("small"))
    (case,) = project.run("-k", "patch_embed", "--parity-shadow-dtype=float32").record["cases"]
    assert case["logic_limit"] == 1e-5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--parity-pair", "smal"), ["unknown pair 'smal'", "valid: absent, small", "did you mean 'small'?"]),
        (("--parity-require", "smalll"), ["unknown pair 'smalll'", "did you mean 'small'?"]),
        (("--parity-size", "tinny"), ["unknown size 'tinny'", "did you mean 'tiny'?"]),
        (("--parity-dtype", "bf16"), ["--parity-dtype", "bfloat16", "float32"]),
        (("--parity-shadow-dtype", "float16"), ["--parity-shadow-dtype", "float64"]),
        (("--parity-device", "cupa"), ["unknown device 'cupa'"]),
        (("--parity-device", "cuda:77"), ["cuda:77"]),
        (("--parity-draws", "0"), ["--parity-draws", "at least 1"]),
        (("--parity-twins", "-1"), ["--parity-twins", "at least 1"]),
        (("--parity-seed", "x"), ["--parity-seed", "at least 0"]),
        (("--parity-cache-limit", "20"), ["--parity-cache-limit", "500MB, 20GB, none"]),
        (("--parity-cache-limit", "infGB"), ["--parity-cache-limit", "500MB, 20GB, none"]),
        (("--parity-pairs", "nowhere"), ["there is no pair folder 'nowhere'"]),
        (("--parity-pair", "small", "--parity-require", "absent"), ["--parity-require absent", "leaves it out"]),
    ],
)
def test_wrong_value_is_a_usage_error(project: Project, given: tuple[str, ...], words: list[str]) -> None:
    project.pair("small", SMALL.format("small"))
    project.pair("absent", ABSENT)
    run = project.run("-q", *given)
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert not [word for word in words if word not in run.text]
    assert "Traceback" not in run.text


def test_pair_restricts_to_the_named_ones(project: Project) -> None:
    for name in ("one", "two", "three"):
        project.pair(name, SMALL.format(name))
    run = project.run("--collect-only", "-q", "--parity-pair", "one", "--parity-pair", "three")
    assert {id.partition("-")[0] for id in run.ids} == {"one", "three"}


def test_pairs_replaces_the_configured_folders(project: Project) -> None:
    project.pair("one", SMALL.format("one"))
    folder = project.pytester.mkdir("elsewhere")
    (folder / "two.py").write_text("from fixtures.tiny import tiny_pair\nPAIR = tiny_pair('two', depth=1)")
    ids = project.run("--collect-only", "-q", "--parity-pairs", "elsewhere").ids
    assert {id.partition("-")[0] for id in ids} == {"two"}


def test_size_a_pair_lacks_leaves_it_at_its_first(project: Project) -> None:
    project.pair("one", SMALL.format("one"))
    project.pair("two", "PAIR = tiny_pair('two', depth=1, lora=None, sizes=('only', 'huge'))")
    states = project.run("-k", "patch_embed", "--parity-size=small").record["pairs"]
    assert {s["pair"]: s["size"] for s in states} == {"one": "small", "two": "only"}


def test_missing_source_skips_and_names_the_command(project: Project) -> None:
    project.pair("absent", ABSENT)
    project.pair("small", SMALL.format("small"))
    run = project.run("-q")
    assert run.code == 0
    assert run.result.parseoutcomes() == {"passed": 10, "skipped": 10}
    assert set(run.outcomes.values()) == {"passed", "skipped"}
    told = "*absent*10 cases skipped (lora_off): elsewhere is not on this machine;*get it with:*"
    run.result.stdout.fnmatch_lines([told])


def test_require_turns_the_skip_into_a_failure(project: Project) -> None:
    project.pair("absent", ABSENT)
    project.pair("small", SMALL.format("small"))
    run = project.run("-q", "--parity-require", "absent", "--parity-require", "small")
    assert run.code == 1
    assert run.result.parseoutcomes() == {"passed": 10, "failed": 10}
    assert run.message("absent-patch_embed-lora_off")[:2] == [
        "absent-patch_embed-lora_off: absent is required and not here: elsewhere is not on this machine",
        "  get it with: fetch elsewhere",
    ]


def test_required_pair_that_was_deselected_fails_the_run(project: Project) -> None:
    for name in ("one", "two"):
        project.pair(name, SMALL.format(name))
    run = project.run("-q", "-k", "one", "--parity-require", "two")
    assert run.code == 1
    assert "ERROR      two is required and no case of it was judged" in run.text


def test_only_missing_sources_prove_nothing(project: Project) -> None:
    project.pair("absent", ABSENT)
    run = project.run("-q")
    assert run.code == 1
    assert "ERROR      no case was judged: this run proves nothing" in run.text


def test_no_size_is_silently_another(project: Project) -> None:
    project.pair("one", SMALL.format("one"))
    project.pair("two", "PAIR = tiny_pair('two', sizes=('only',))")
    run = project.run("-q", "--parity-pair", "two", "--parity-size", "small")
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert "unknown size 'small'" in run.text


def test_runs_without_xdist(project: Project) -> None:
    project.pair("small", SMALL.format("small"))
    assert project.run("-q", "-p", "no:xdist", "--parity-pair", "small").code == 0
