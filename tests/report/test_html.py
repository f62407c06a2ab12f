"""The HTML report: one file, everything escaped, nothing allowed but its own scripts, whatever the record holds."""

from __future__ import annotations

import base64
import copy
import gzip
import hashlib
import importlib
import json
import random
import re
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from typing import Any

import pytest

from fixtures.large_record import large_record
from fixtures.records import EDITS, recorded
from parity.errors import RecordError, UsageError
from parity.report.html import page, render_html
from parity.report.html.packed import states_of
from parity.report.shape import LONGEST, MOST_CASES, well_formed

pytestmark = pytest.mark.usefixtures("one_thread")
EVIL = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\"'`\u2028{{ 7*7 }}&lt;"
VOID = {"meta", "input", "br", "img", "link"}


class Seen(HTMLParser):
    """What a browser would make of a page: elements, attributes, the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._in: str = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._in = tag
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._in = "" if tag == self._in else self._in

    def handle_data(self, data: str) -> None:
        if self._in:
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        else:
            self.words.append(data)

    def script(self, id: str) -> str:
        return next(text for attrs, text in self.scripts if attrs.get("id") == id)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def texts_replaced(value: Any, text: str, key: str = "") -> Any:
    """A record with every free text replaced; what is one of a few words stays."""
    if isinstance(value, dict):
        return {k if k in KEYS else text + k: texts_replaced(v, text, k) for k, v in value.items()}
    if isinstance(value, list):
        return [texts_replaced(v, text, key) for v in value]
    return text + value if isinstance(value, str) and key not in FIXED else value


FIXED = {"verdict", "outcome", "schema", "precision", "state", "shown_by"}
KEYS: set[str] = set()


def keys_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for one in value.values():
            yield from keys_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from keys_of(one)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return recorded(*EDITS)


@pytest.fixture(scope="module")
def html(record: dict[str, Any]) -> str:
    return render_html(record, recorded("healthy"))


@pytest.fixture(scope="module")
def seen(html: str) -> Seen:
    return Seen(html)


# --- one file ---------------------------------------------------------------------------------------------------------


def test_file_asks_for_nothing(html: str, seen: Seen) -> None:
    for tag, attrs in seen.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img"), tag
        assert not any(name in attrs for name in ("src", "srcset", "action", "poster", "ping")), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        assert attrs.get("href", "#").startswith("#"), attrs  # type: ignore[union-attr]
    (style,) = (text for attrs, text in seen.scripts if "--paper" in text)
    assert not re.search(r"url\(|@import", style)


def test_policy_allows_its_own_scripts_and_nothing_else(seen: Seen) -> None:
    (policy,) = (a["content"] for t, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    run = [text for attrs, text in seen.scripts if "type" not in attrs and "--paper" not in text]
    plotly = gzip.decompress(base64.b64decode(seen.script("plotly"))).decode()
    digests = {f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in (*run, plotly)}
    assert set(rules["script-src"].split()) == digests
    assert len(run) == 1


def test_own_script_never_makes_markup_of_text(seen: Seen) -> None:
    (script,) = (text for attrs, text in seen.scripts if "type" not in attrs and "--paper" not in text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|fetch\(", script)


# --- what it says -----------------------------------------------------------------------------------------------------


def test_first_screen_says_verdict_counts_first_divergence_and_finding(seen: Seen, record: dict[str, Any]) -> None:
    top = seen.text.split("Heat map", 2)[1]
    failed = record["summary"]["outcomes"]["failed"]
    first = next(s for s in record["pairs"] if s["first_different"] and s["pair"] == "another_function")
    assert f"Not at parity {failed} of {record['summary']['cases']} cases fail" in top
    assert first["first_different"] in top
    assert "First divergence" in top
    assert "gelu" in top.split("Finding")[1], "the finding names what is to be changed"
    assert "Proof" in top


def test_every_case_is_in_the_details_of_its_state(seen: Seen, record: dict[str, Any]) -> None:
    blobs = [text for attrs, text in seen.scripts if attrs.get("class") == "details"]
    held = [json.loads(gzip.decompress(base64.b64decode(blob))) for blob in blobs]
    assert sorted(c["id"] for cases in held for c in cases) == sorted(c["id"] for c in record["cases"])
    for state, cases in zip(states_of(record), held, strict=True):
        assert {(c["pair"], c["state"]) for c in cases} == {(state["pair"], state["state"])}


def test_index_holds_every_number_of_the_heat_maps(seen: Seen, record: dict[str, Any]) -> None:
    index = json.loads(seen.script("index"), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert {len(column) for column in index["cases"].values()} == {len(record["cases"])}
    at = next(n for n, c in enumerate(record["cases"]) if c["impact"] is not None)
    assert index["cases"]["impact"][at] == pytest.approx(record["cases"][at]["impact"], rel=1e-3)
    assert "NaN" in index["cases"]["rel_l2"] or "Infinity" in index["cases"]["rel_l2"], "NaN is named"
    for state in index["states"]:
        held = next(s for s in record["pairs"] if (s["pair"], s["state"]) == (state["pair"], state["state"]))
        if held["first_different"]:
            assert index["taps"][index["cases"]["tap"][state["first"]]]["name"] == held["first_different"]


def test_sections_of_a_whole_run(seen: Seen) -> None:
    for words in (
        "What the LoRA does", "Drift along depth", "Every native tensor is compared", "What was not judged, and why",
        "tf32_matmul", "Since the run of", "parity run another_function -k",
    ):  # fmt: skip
        assert words in seen.text, words


def test_healthy_run_says_what_it_rests_on() -> None:
    text = Seen(render_html(recorded("healthy"))).text
    assert "At parity 30 of 30 cases pass" in text
    assert "What this rests on" in text
    assert "Every case was judged." in text


def test_what_was_not_judged_is_grouped_by_its_reason() -> None:
    changed = copy.deepcopy(recorded("healthy"))
    for case in changed["cases"][:3]:
        case.update(outcome="not judged", verdict="not judged", reasons=["no power: 8 tokens"])
    text = Seen(render_html(changed)).text
    assert "3 cases: no power: 8 tokens" in text
    assert "3 not judged" in text


def test_nothing_judged_is_not_parity() -> None:
    changed = copy.deepcopy(recorded("healthy"))
    for case in changed["cases"]:
        case.update(outcome="skipped", verdict="not judged")
    text = Seen(render_html({**changed, "pairs": []})).text
    assert "Nothing was judged" in text
    assert "At parity" not in text


# --- hostile and broken records ---------------------------------------------------------------------------------------


@pytest.fixture
def evil(record: dict[str, Any]) -> dict[str, Any]:
    KEYS.update(keys_of(record))
    found: dict[str, Any] = texts_replaced(record, EVIL)
    found["environment"][EVIL] = {EVIL: EVIL}
    return found


def test_texts_of_a_record_stay_texts(evil: dict[str, Any], seen: Seen) -> None:
    found = Seen(render_html(evil, evil))
    scripts = [sum(tag == "script" for tag, _ in page.tags) for page in (found, seen)]
    assert scripts[0] == scripts[1]
    assert {t for t, _ in found.tags} <= {t for t, _ in seen.tags} | {"div"}
    assert not [a for _, a in found.tags if any(name.startswith("on") for name in a)]
    assert "<!--" not in "".join(text for _, text in found.scripts)
    assert "alert(1)" in found.text, "shown as what it is"
    assert "{{ 7*7 }}" in found.text, "no template either"


def test_long_texts_and_lists_are_cut_short() -> None:
    changed = copy.deepcopy(recorded("healthy"))
    changed["cases"][0].update(reasons=["x" * 10_000_000] * 500, outcome="failed", verdict="different, felt")
    case = well_formed(changed)["cases"][0]
    assert len(case["reasons"]) < 500
    assert max(map(len, case["reasons"])) < LONGEST + 100
    assert len(render_html(changed)) < 8_000_000


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a record, containers included; of long lists the first two items."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, one in items:
        yield from leaves(one, (*path, key))


def put(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    found = copy.deepcopy(record)
    at: Any = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return found


def test_any_field_of_another_type_is_shown_or_named() -> None:
    """Nothing but a report or a RecordError comes out, whatever stands where."""
    whole = recorded("another_function")
    case = next(c for c in whole["cases"] if c["outcome"] == "failed" and "lora_on" in c["state"])
    small = {**whole, "cases": [case], "pairs": [s for s in whole["pairs"] if s["state"] == case["state"]]}
    draw, shown = random.Random(0), 0
    for path in leaves(small):
        bad: Any = draw.choice([None, 7, "x", [], {}, True, -1e308, [[]], {"a": {}}])
        with suppress(RecordError):
            render_html(put(small, path, bad), whole)
            shown += 1
    assert 50 < shown < len(list(leaves(small))) - 50


@pytest.mark.parametrize("missing", ["created", "pairs", "cases"])
def test_record_without_a_field_is_named(missing: str) -> None:
    with pytest.raises(RecordError, match=f"has no '{missing}'"):
        render_html({k: v for k, v in recorded("healthy").items() if k != missing})


def test_other_schema_and_too_many_cases_are_named() -> None:
    whole = recorded("healthy")
    with pytest.raises(RecordError, match="schema 'parity-record/9'"):
        render_html({**whole, "schema": "parity-record/9"})
    with pytest.raises(RecordError, match="can be shown"):
        render_html({**whole, "cases": [{}] * (MOST_CASES + 1)})
    with pytest.raises(RecordError, match="no case"):
        render_html({**whole, "cases": []})


def test_record_of_an_older_version_is_shown() -> None:
    older = copy.deepcopy(recorded("another_function"))
    for case in older["cases"]:
        for name in ("residual", "dtypes", "rerun"):
            del case[name]
        if case["place"]:
            del case["place"]["code"]
    for state in older["pairs"]:
        del state["weights"], state["lora_comparison"]
    assert "Not at parity" in Seen(render_html(older)).text


# --- size and the extra -----------------------------------------------------------------------------------------------


def test_report_of_a_real_models_size_stays_small() -> None:
    record = large_record(failing=1.0)
    assert len(record["cases"]) >= 48 * 9 * 2 * 3
    assert len(render_html(record).encode()) < 8_000_000


@pytest.mark.parametrize("library", ["jinja2", "plotly"])
def test_missing_library_is_named_with_the_way_out(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str) -> Any:
        if name.startswith(library):
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    page._environment.cache_clear()
    page._plotly.cache_clear()
    words = rf"{library} is not installed\ninstall them: pip install 'dit-parity\[report\]'"
    with pytest.raises(UsageError, match=words):
        render_html(recorded("healthy"))
