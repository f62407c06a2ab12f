"""The report in a real browser: clicks, switches, keys, no error, no request, nothing of a record ever run."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.records import EDITS, recorded
from parity.report.html import render_html

pytestmark = pytest.mark.usefixtures("one_thread")
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><a href='javascript:1'>a</a>"


def hostile() -> dict[str, Any]:
    """A record whose first failing case has markup in every text that a curve, a table or a title shows."""
    record = copy.deepcopy(recorded(*EDITS))
    case = next(c for c in record["cases"] if c["residual"] and c["place"])
    case.update(likely=[EVIL, f"`{EVIL}`"], reasons=[EVIL], rerun=EVIL, native_path=EVIL, tap=case["tap"] + EVIL)
    case["place"]["code"]["native"] = [[EVIL, EVIL]]
    case["dtypes"]["native"] = {EVIL: 1}
    for state in record["pairs"]:
        state["first_different"] = case["tap"] if state["first_different"] else None
    return record


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    made = {
        "whole": render_html(recorded(*EDITS), recorded("healthy", "another_function")),
        "healthy": render_html(recorded("healthy")),
        "hostile": render_html(hostile()),
    }
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


class Tab:
    """A page that notes errors, requests and dialogs."""

    def __init__(self, browser: Any, path: Path, **given: Any) -> None:
        self.page = browser.new_page(**given)
        self.page.set_default_timeout(15_000)
        self.problems: list[str] = []
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.problems.append(str(e)))
        self.page.on("dialog", self._refuse)
        self.page.on("request", lambda r: None if r.url.startswith(("file:", "blob:")) else self.problems.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#map td[tabindex='0']")

    def _refuse(self, dialog: Any) -> None:
        self.problems.append(dialog.message)
        dialog.dismiss()

    def cells(self) -> list[str]:
        return [str(text) for text in self.page.locator("#map td[data-case]").all_inner_texts()]

    def choose(self, name: str, value: str) -> None:
        self.page.locator(f"input[name={name}][value={value}]").check(force=True)


@pytest.fixture
def tab(browser: Any, files: dict[str, Path]) -> Iterator[Tab]:
    found = Tab(browser, files["whole"])
    yield found
    assert found.problems == []
    found.page.close()


def first_failing(tab: Tab) -> Any:
    return tab.page.locator("#map td[data-outcome=failed]").first


def test_click_opens_the_case_with_everything_known(tab: Tab) -> None:
    tab.page.select_option("#pair", "another_function")
    first_failing(tab).click()
    dialog = tab.page.locator("#case")
    dialog.locator(".plots .main-svg").nth(0).wait_for()
    text = dialog.inner_text()
    for words in ("Finding", "PROOF", "gelu", "Numbers", "Logic error", "1.0e-12", "What it means", "Along tokens",
                  "Histogram", "Dtype trace", "Run it again", "parity run another_function -k"):  # fmt: skip
        assert words in text, words
    assert dialog.locator(".plots .js-plotly-plot").count() == 4
    assert dialog.locator("pre.source").count() >= 1


def test_keys_move_open_and_close(tab: Tab) -> None:
    page = tab.page
    page.select_option("#pair", "another_function")
    page.locator("#map td[tabindex='0']").focus()
    page.keyboard.press("Control+Home")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("patch_embed; bit-exact")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("sinusoid")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("block0.")
    page.keyboard.press("n")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "failed" in label
    page.keyboard.press("Enter")
    page.wait_for_selector("#case[open]")
    assert page.locator("#case-title").inner_text().split()[0] == label.split(";")[0]
    assert page.evaluate("document.activeElement.id") == "case-title", "a screen reader starts at the title"
    page.keyboard.press("Escape")
    page.wait_for_selector("#case[open]", state="detached")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == label, "focus comes back"
    assert page.locator("#map td[tabindex='0']").count() == 1


def test_switches_change_what_is_shown(tab: Tab) -> None:
    page = tab.page
    page.select_option("#pair", "another_function")
    seen = {}
    for lora in ("off", "on"):
        tab.choose("lora", lora)
        for mode in ("verdict", "logic_error", "rounding_excess", "impact", "rel_l2", "lora_effect"):
            tab.choose("mode", mode)
            seen[lora, mode] = tab.cells()
            assert page.locator("#grid").get_attribute("aria-label").startswith(f"another_function lora_{lora}")
    for lora in ("off", "on"):
        modes = ("verdict", "logic_error", "rounding_excess", "impact", "rel_l2")
        assert len({tuple(seen[lora, mode]) for mode in modes}) == 5, "each shows something of its own"
    assert set(seen["off", "lora_effect"]) == {""}
    assert any(seen["on", "lora_effect"])
    assert page.locator("#map td.first").count() == 1


def test_themes_are_three_and_the_curves_follow(tab: Tab) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    tab.choose("theme", "light")
    light = tab.page.evaluate(colour)
    tab.choose("theme", "dark")
    assert tab.page.evaluate(colour) != light
    tab.choose("theme", "auto")
    tab.page.emulate_media(color_scheme="dark")
    assert tab.page.evaluate(colour) != light
    tab.page.emulate_media(media="print")


def test_drift_is_drawn_when_it_comes_into_sight(tab: Tab) -> None:
    assert tab.page.evaluate("window.Plotly === undefined"), "opening does not wait for it"
    tab.page.select_option("#pair", "another_function")
    tab.page.locator("#drift").scroll_into_view_if_needed()
    tab.page.locator("#drift-plot .main-svg").first.wait_for()
    tab.page.locator("#drift-table summary").click()
    assert "lora_on" in tab.page.locator("#drift-table").inner_text()


def test_next_and_previous_go_through_what_differs(tab: Tab) -> None:
    tab.page.select_option("#pair", "another_function")
    first_failing(tab).click()
    tab.page.wait_for_selector("#case[open]")
    title = tab.page.locator("#case-id").inner_text()
    tab.page.click("#case-next")
    # Not `wait_for_function`: it evaluates text in the page, which the page's own policy forbids.
    same = tab.page.locator("#case-id", has_text=re.compile(f"^{re.escape(title)}$"))
    same.wait_for(state="detached")
    tab.page.click("#case-before")
    same.wait_for(state="attached")
    assert title in tab.page.evaluate("decodeURIComponent(location.hash)")


def test_address_of_a_case_opens_it(browser: Any, files: dict[str, Path]) -> None:
    wanted = next(c["id"] for c in recorded(*EDITS)["cases"] if c["outcome"] == "failed")
    page = browser.new_page()
    page.goto(f"{files['whole'].as_uri()}#case={wanted}")
    page.wait_for_selector("#case[open]")
    assert page.locator("#case-id").inner_text() == wanted
    page.close()


def test_copy_says_so(tab: Tab) -> None:
    tab.page.locator("[data-copy]").first.click()
    # The button goes back to its word after a while; what is said to a screen reader stays.
    from playwright.sync_api import expect

    expect(tab.page.locator("#said")).to_have_text("Command copied")


def test_narrow_screen_does_not_scroll_sideways(browser: Any, files: dict[str, Path]) -> None:
    found = Tab(browser, files["whole"], viewport={"width": 390, "height": 800})
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 390
    found.page.close()


def test_everything_has_a_name(tab: Tab) -> None:
    """What can be reached by keyboard can be named, and no id is there twice."""
    nameless = tab.page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, select, [role=region], [role=img], [role=grid]")]
        .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.closest("label")?.textContent.trim()
          || e.getAttribute("aria-labelledby"))).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    ids = tab.page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_healthy_report_has_no_error(browser: Any, files: dict[str, Path]) -> None:
    found = Tab(browser, files["healthy"], color_scheme="dark")
    found.page.locator("#map td[data-case]").first.click()
    found.page.wait_for_selector("#case[open]")
    assert found.problems == []
    found.page.close()


def test_markup_in_a_record_is_never_run(browser: Any, files: dict[str, Path]) -> None:
    found = Tab(browser, files["hostile"])
    found.page.locator("#overview button.open").first.click()
    found.page.locator("#case .main-svg").first.wait_for()
    assert "window.hacked" in found.page.locator("#case-body").inner_text(), "shown as text"
    found.page.keyboard.press("Escape")
    found.page.locator("#drift").scroll_into_view_if_needed()
    found.page.locator("#drift-plot .main-svg").first.wait_for()
    assert found.page.evaluate("window.hacked") is None
    assert found.page.evaluate("document.querySelectorAll('img').length") == 0
    assert found.page.evaluate("[...document.links].filter((a) => !a.getAttribute('href').startsWith('#')).length") == 0
    assert found.problems == []
    found.page.close()
