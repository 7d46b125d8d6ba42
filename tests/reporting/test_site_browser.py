"""The report in headless Chromium: no error on the console, sorting, filters, images, phone, dark mode, keyboard, print.

Needs Debian's chromium and chromium-driver, and selenium; skipped where one is absent.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evalkit.reporting.site import board, build, collected, pictures
from tests.reporting.test_site import put

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
selenium = pytest.importorskip("selenium", reason="selenium is not installed (extra dev)")
if not (CHROMIUM and DRIVER):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)

SPECS = {
    "one-with-a-rather-long-name-that-has-to-break.fp16": {"family": "dino", "arch": "vit_small_patch16"},
    "two": {"family": "mae", "arch": "vit_base_patch16"},
    "pixels": {"family": "pixels", "arch": "pixels_patch8_64"},
}
RIGHT = {"one-with-a-rather-long-name-that-has-to-break.fp16": 60, "two": 80, "pixels": 20}
RECIPES = {
    "mini-knn-ccp-items": {"runner": "knn"},
    "mini-part-linear-ccp": {"runner": "linear", "dataset": {"name": "cub_parts"}},
    **{f"video-number-{i}": {"runner": "video"} for i in range(9)},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for at, (name, recipe) in enumerate(RECIPES.items()):
        for encoder, right in RIGHT.items():
            if (name, encoder) != ("mini-part-linear-ccp", "two"):
                ones = right if at != 1 else 100 - right
                put(folder / "runs", encoder, [1] * ones + [0] * (100 - ones), name=name, recipe=recipe,
                    encoder={"id": encoder, "digest": "d", **SPECS[encoder]})  # fmt: skip
    (folder / "runs/two/mini-knn-ccp-items.00000000.json").write_text("{")
    found = board.build(collected.collect(folder / "runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALKIT_CACHE", str(folder / "cache"))
        pencil = lambda kind, given, path: Image.new("RGB", (900, 300)).save(path)
        shown = [e for e in found.encoders if e.control]
        drawn = {e.who: list(pictures.make(e, pencil, folder / "out/pictures")) for e in shown}
    return build.write(found, drawn, folder / "out").parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, site: Path) -> Any:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get((site / "index.html").as_uri())
    return browser


def all_pages(site: Path) -> list[Path]:
    found = [site / "index.html", *sorted(site.glob("encoders/*.html")), *sorted(site.glob("recipes/*.html"))]
    assert len(found) == 1 + len(SPECS) + len(RECIPES)
    return found


def names(page: Any) -> list[str]:
    """Of the rows that are seen, from the top."""
    return page.execute_script(
        "return [...document.querySelectorAll('#leaderboard tbody tr:not([hidden]) th')].map(c => c.dataset.value)"
    )


def seen_columns(page: Any) -> int:
    return page.execute_script("return document.querySelectorAll('#leaderboard thead th:not([hidden])').length") - 1


def choose(page: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(page.find_element("css selector", f'[data-filter="{name}"]')).select_by_value(value)


def sorter(page: Any, column: int) -> Any:
    return page.find_elements("css selector", "#leaderboard thead .sort")[column]


def test_every_page_loads_without_a_message_and_shows_every_image(browser: Any, site: Path) -> None:
    images = 0
    for path in all_pages(site):
        browser.get(path.as_uri())
        found = browser.execute_script(
            "return [...document.images].map(i => [i.complete && i.naturalWidth > 0, i.alt.trim()])"
        )
        assert all(shown and alt for shown, alt in found), path
        images += len(found)
    assert browser.get_log("browser") == []
    assert images == len(pictures.kinds()) + 2  # one encoder's page, and two of them on the front


def test_sorts_by_click_and_back(page: Any) -> None:
    first = names(page)
    assert first[-1] == "pixels"
    sorter(page, 1).click()
    assert names(page)[0] == "two"  # the best first
    sorter(page, 1).click()
    assert names(page) == ["pixels", first[0], "two"]
    head = page.find_elements("css selector", "#leaderboard thead th")[1]
    assert head.get_attribute("aria-sort") == "ascending"
    sorter(page, 1).click()
    assert names(page) == first


def test_what_was_not_measured_comes_last_in_both_directions(page: Any) -> None:
    at = page.execute_script(
        "return [...document.querySelectorAll('#leaderboard thead th')].findIndex(h => h.dataset.runner == 'linear')"
    )
    sorter(page, at).click()
    assert names(page)[0] == "pixels" and names(page)[-1] == "two"
    sorter(page, at).click()
    assert names(page)[-1] == "two"


def test_sorts_by_keyboard(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    sorter(page, 1).send_keys(Keys.ENTER)
    assert names(page)[0] == "two"
    assert page.execute_script("return document.activeElement.className") == "sort"
    page.find_element("css selector", "body").send_keys(Keys.TAB)
    page.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")


def test_filters_and_shows_all_again(page: Any) -> None:
    choose(page, "runner", "knn")
    assert seen_columns(page) == 1
    choose(page, "runner", "")
    choose(page, "grain", "video")
    assert seen_columns(page) == 9
    choose(page, "family", "mae")
    assert names(page) == ["two"]
    assert "1 of 3 encoders, 9 of 11 recipes" in page.find_element("id", "shown").text
    choose(page, "arch", "pixels_patch8_64")
    assert names(page) == [] and "Nothing fits" in page.find_element("id", "shown").text
    page.find_element("css selector", ".reset").click()
    assert (len(names(page)), seen_columns(page)) == (3, 11)
    page.find_element("css selector", "[data-controls]").click()
    assert "pixels" not in names(page)


def test_broken_records_are_named(page: Any) -> None:
    assert "mini-knn-ccp-items.00000000.json" in page.find_element("id", "broken").text


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways(browser: Any, site: Path, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for path in all_pages(site):
        browser.get(path.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, path
    browser.get((site / "index.html").as_uri())
    inner, outer = browser.execute_script(
        "const b = document.querySelector('#board .scroll'); return [b.scrollWidth, b.clientWidth]"
    )
    assert inner > outer  # eleven columns scroll in their own box


def test_dark_mode_is_dark_with_readable_letters(page: Any) -> None:
    def lightness() -> tuple[float, float]:
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        found = [[int(v) for v in text[4:-1].split(",")] for text in page.execute_script(script)]
        return sum(found[0]) / 765, sum(found[1]) / 765

    for mode, dark in (("dark", True), ("light", False)):
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": mode}]}
        )
        back, letters = lightness()
        assert (back < 0.2 < 0.8 < letters) if dark else (letters < 0.2 < 0.8 < back)


def test_prints(page: Any) -> None:
    pdf = base64.b64decode(page.print_page())
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000


def test_the_ways_lead_on(page: Any) -> None:
    page.find_element("css selector", "#leaderboard tbody a").click()
    assert "one-with-a-rather-long-name" in page.title
    page.find_element("css selector", "#scores a").click()
    assert "mini-knn-ccp-items" in page.title
    page.find_element("css selector", ".brand").click()
    assert page.title == "evalkit report"
