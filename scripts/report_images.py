"""Pictures of the report for the documentation, taken by a real browser from runs with planted bugs.

    make report-images

Judges the bundled pair once a row of `RUNS`, below build/report/; a record that is there already is taken again with
`--keep`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

from fixtures.browser import browser_page
from fixtures.pairs.longcat import PAIR
from fixtures.plants import PLANTS
from parity.case import cases_of
from parity.commands.report import rendered
from parity.commands.run import judge_cases
from parity.engine import Engine, Settings
from parity.pair import ModelPair
from parity.runs import RunBook

ROOT = Path(__file__).resolve().parents[1]
IMAGES, RECORDS = ROOT / "docs" / "images", ROOT / "build" / "report"
LARGEST = 300_000
RUNS: dict[str, tuple[str, ...]] = {
    "passing": (),
    "failing": ("qk_swapped", "final_low"),
    "lora": ("lora_alpha_ignored",),
    "earlier": ("norm_low", "final_low"),
}
"""Per record, the bugs in it."""
Act = Callable[[Any], object]


def planted(names: tuple[str, ...]) -> ModelPair:
    """Return the bundled pair with bugs in its native."""
    return reduce(lambda pair, name: PLANTS[name].apply(pair), names, PAIR)


def record_of(name: str, keep: bool) -> Path:
    """Judge the pair with the bugs of a record; return where it is written."""
    path = RECORDS / name / "parity.json"
    if not (keep and path.exists()):
        pair = planted(RUNS[name])
        engine, book = Engine({pair.name: pair}, Settings()), RunBook(path.parent)
        cases = list(cases_of(pair, engine.settings.build(pair)))
        judge_cases(engine, cases, book, False, f"parity run {pair.name}")
    return path


def opened_case(page: Any) -> None:
    """Open the first divergence and wait for its curves."""
    page.locator("#overview button.open").first.click()
    page.locator("#case .main-svg").nth(7).wait_for()
    page.wait_for_timeout(300)


def curves(page: Any) -> None:
    """Open the first divergence and go to its curves."""
    opened_case(page)
    page.locator("#case .plots").evaluate("(e) => e.closest('section').scrollIntoView()")
    page.locator("#case").evaluate("(e) => e.scrollBy(0, -90)")


def at(selector: str) -> Act:
    """Return what brings a section to the top."""
    return lambda page: page.evaluate("(s) => { document.documentElement.style.scrollBehavior = 'auto'; "
                                      "document.querySelector(s).scrollIntoView(); }", selector)  # fmt: skip


def lora_effect(page: Any) -> None:
    """Show the LoRA's effect as a heat map."""
    page.locator("input[name=mode][value=lora_effect]").check(force=True)
    at("#heatmap")(page)


SHOTS: dict[str, tuple[str, str, int, str, Act]] = {
    "report_failing": ("failing", "", 1360, "light", lambda page: None),
    "report_case": ("failing", "", 1100, "light", opened_case),
    "report_curves": ("failing", "", 1000, "dark", curves),
    "report_passing": ("passing", "", 1100, "dark", lambda page: None),
    "report_lora": ("lora", "", 900, "light", lora_effect),
    "report_lora_table": ("lora", "", 900, "dark", at("#lora")),
    "report_compared": ("failing", "earlier", 900, "light", at("#changes")),
}
"""Per picture: the record, the earlier one, how high, light or dark, what is done first."""


def shoot(name: str, folder: Path, pages: dict[tuple[str, str], Path]) -> None:
    """Take one picture."""
    record, earlier, height, scheme, act = SHOTS[name]
    path = folder / f"{name}.png"
    with browser_page(viewport={"width": 1280, "height": height}, color_scheme=scheme) as page:
        page.goto(pages[record, earlier].as_uri())
        page.wait_for_selector("#map td[tabindex='0']")
        act(page)
        page.wait_for_timeout(300)
        page.screenshot(path=path)
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}  {size / 1000:.0f} kB")
    assert size < LARGEST, f"{path} is larger than {LARGEST} bytes"


def main() -> None:
    """Make the records, their reports, and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="take records that are there already")
    keep = parser.parse_args().keep
    records = {name: record_of(name, keep) for name in RUNS}
    pages = {}
    for record, earlier, *_ in SHOTS.values():
        page = RECORDS / f"{record}-{earlier or 'alone'}.html"
        page.write_text(rendered(records[record], records.get(earlier)), encoding="utf-8")
        pages[record, earlier] = page
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in SHOTS:
        shoot(name, IMAGES, pages)


if __name__ == "__main__":
    main()
