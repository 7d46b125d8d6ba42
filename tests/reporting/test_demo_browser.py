"""The demo page as served by `evalkit demo`: a click and the slider change the mask, in headless Chromium; what is no upload
is refused, by HTTP.

Needs gradio (extra demo); for the page Debian's chromium and chromium-driver, and selenium. Skipped where one is absent.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.waiting import HANG, until

if find_spec("gradio") is None:
    pytest.skip("gradio is not installed (extra demo)", allow_module_level=True)

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The address of a running `evalkit demo`, started among settings that would open it if they counted."""
    folder = tmp_path_factory.mktemp("demo")
    code = "import sys; sys.argv[0] = 'evalkit'; from evalkit.cli.main import main; main()"
    words = ["demo", "micro-dino", "pixels", "--port", "0", "--max-mb", "1", "--max-megapixels", "0.5", "--size", "160"]
    surroundings = {**os.environ, "TMPDIR": str(folder), "EVALKIT_CACHE": str(folder), "GRADIO_SHARE": "True",
                    "GRADIO_ALLOWED_PATHS": "/etc", "GRADIO_SERVER_NAME": "0.0.0.0", "OMP_NUM_THREADS": "1"}  # fmt: skip
    with (folder / "log").open("w+") as log:
        running = subprocess.Popen([sys.executable, "-u", "-c", code, *words], stdout=log, stderr=log, env=surroundings)
        try:
            until(lambda: "demo: http" in (folder / "log").read_text(), "the page", running)
            yield (folder / "log").read_text().split()[1].rstrip("/")
            assert list(folder.glob("evalkit-demo-*/*"))
            running.send_signal(signal.SIGTERM)
            running.wait()
            assert list(folder.glob("evalkit-demo-*")) == []  # uploads do not stay
        finally:
            running.kill()
            running.wait()


# ---------------------------------------------------------------- by HTTP


def fetched(address: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, Any]:
    request = urllib.request.Request(address, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=HANG) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def uploading(server: str, data: bytes, name: str) -> tuple[int, bytes]:
    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + f"\r\n--{mark}--\r\n".encode()
    return fetched(f"{server}/gradio_api/upload", body, Content_Type=f"multipart/form-data; boundary={mark}")[:2]


def taken(server: str, path: str) -> dict[str, Any]:
    """What the page answers to an upload that lies at a path, as it says."""
    config = json.loads(fetched(f"{server}/config")[1])
    number = next(d["id"] for d in config["dependencies"] if d["targets"] and d["targets"][0][1] == "upload")
    session = uuid.uuid4().hex
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "photo.png"}
    body = {"data": [file], "fn_index": number, "session_hash": session}
    assert (
        fetched(f"{server}/gradio_api/queue/join", json.dumps(body).encode(), Content_Type="application/json")[0] == 200
    )
    lines = fetched(f"{server}/gradio_api/queue/data?session_hash={session}")[1].decode().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    return next(event for event in events if event["msg"] == "process_completed")


def png(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    kept = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(kept, "PNG")
    return kept.getvalue()


def test_it_listens_to_this_machine_under_its_own_names_only(server):
    assert server.startswith("http://127.0.0.1:")  # although GRADIO_SERVER_NAME asks for all addresses
    status, _, headers = fetched(f"{server}/")
    assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
    assert fetched(f"{server}/", Host="evil.example")[0] == 400


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd",
     f"/gradio_api/file={Path(__file__)}", "/gradio_api/file=http://192.0.2.1/x.png", "/gradio_api/proxy=http://192.0.2.1/"],
)  # fmt: skip
def test_no_file_but_uploads_is_served(server, path):
    status, body, _ = fetched(server + path)
    assert status in (400, 403, 404) and b"root:" not in body and b"headless" not in body


def test_paths_and_addresses_are_no_uploads(server):
    status, told = uploading(server, png(40, 30), "photo.png")
    assert status == 200
    kept = json.loads(told)[0]
    assert taken(server, kept)["success"] is True
    assert fetched(f"{server}/gradio_api/file={kept}")[0] == 200
    photo = next((Path(__file__).parents[2] / "mini/coco/val2017").glob("*.jpg"))
    for path in ("/etc/passwd", str(photo), "http://192.0.2.1/x.png", f"{kept}/../../../../../../../../etc/passwd"):
        assert taken(server, path)["success"] is False


def test_uploads_that_are_refused(server):
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)
    kept = io.BytesIO()
    Image.fromarray(noise).save(kept, "PNG")
    assert len(kept.getvalue()) > 1e6
    assert uploading(server, kept.getvalue(), "large.png")[0] == 413
    for data, words in ((b"no picture", "is no image"), (png(1000, 501), "has 1000 x 501 pixels")):
        status, told = uploading(server, data, "photo.png")
        answer = taken(server, json.loads(told)[0])
        assert status == 200 and answer["success"] is False and words in answer["output"]["error"]


# ---------------------------------------------------------------- in the browser


@pytest.fixture(scope="module")
def browser(server) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra dev)")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1600",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.get(server)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any) -> Any:
    """The page after its first answer."""
    browser.refresh()
    until(lambda: source(browser, "#mask img") and source(browser, "#found img"), "the first answer")
    return browser


def source(page: Any, which: str) -> str:
    return page.execute_script("return document.querySelector(arguments[0])?.src ?? ''", which)


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(fetched(address)[1])).convert("RGB"), np.int64)


def changed(page: Any, which: str, before: str) -> np.ndarray:
    """The picture once it is another."""
    return pixels(until(lambda: (now := source(page, which)) not in ("", before) and now, f"another {which}"))


def words(page: Any, which: str) -> str:
    return page.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", which)


def click_at(page: Any, across: float, down: float) -> None:
    """On the photograph, at shares of its width and height."""
    from selenium.webdriver.common.action_chains import ActionChains

    image = page.find_element("css selector", "#photo img")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
    width, height = image.size["width"], image.size["height"]
    way = round((across - 0.5) * width), round((down - 0.5) * height)
    ActionChains(page).move_to_element_with_offset(image, *way).click().perform()


def test_a_click_changes_heat_map_mask_and_words(page: Any) -> None:
    before = {which: source(page, f"#{which} img") for which in ("photo", "heat", "mask", "found")}
    said, masked = words(page, "#said"), pixels(before["mask"])
    click_at(page, 0.5, 0.9)  # on the white hob, where the pizza asked before
    now = changed(page, "#mask img", before["mask"])
    assert now.shape == masked.shape and (np.abs(now - masked).max(axis=2) > 60).mean() > 0.1
    assert np.abs(changed(page, "#heat img", before["heat"]) - pixels(before["heat"])).max() > 60
    changed(page, "#photo img", before["photo"])
    assert until(lambda: words(page, "#said") not in ("", said), "other words")
    changed(page, "#found img", before["found"])  # the open tab follows


def test_the_slider_changes_the_mask_alone(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    mask, heat, said = source(page, "#mask img"), source(page, "#heat img"), words(page, "#said")
    slider = page.find_element("css selector", "#threshold input[type=range]")
    slider.send_keys(*[Keys.ARROW_RIGHT] * 30)
    assert until(lambda: "than 0.90" in words(page, "#said"), "the new threshold")
    fewer = changed(page, "#mask img", mask)
    assert (np.abs(fewer - pixels(mask)).max(axis=2) > 60).mean() > 0.02
    assert source(page, "#heat img") == heat
    share = [float(text.split("%")[0]) for text in (said, words(page, "#said"))]
    assert share[1] < share[0]


def test_a_text_file_named_png_is_refused_in_words_and_a_photograph_taken(page: Any, tmp_path: Path) -> None:
    false, true = tmp_path / "false<b>.png", tmp_path / "true.png"
    false.write_text("this is text")
    true.write_bytes(png(120, 60))
    before = source(page, "#photo img")
    chooser = page.find_element("css selector", "#upload input[type=file]")
    chooser.send_keys(str(false))
    told = until(lambda: words(page, ".toast-wrap, [data-testid=toast-body]"), "a refusal")
    assert "is no image: it begins with" in told and "Choose a photograph" in told
    assert source(page, "#photo img") == before
    page.refresh()
    until(lambda: source(page, "#found img"), "the page again")
    page.find_element("css selector", "#upload input[type=file]").send_keys(str(true))
    assert until(
        lambda: (now := source(page, "#photo img")) not in ("", before) and pixels(now).shape == (240, 480, 3), "it"
    )
    assert until(lambda: words(page, "#said").startswith("100 %"), "one colour is one mask")


def test_another_encoder_and_another_photograph_answer(page: Any) -> None:
    heat, photo = source(page, "#heat img"), source(page, "#photo img")
    page.find_elements("css selector", "#examples button")[2].click()
    changed(page, "#photo img", photo)
    changed(page, "#heat img", heat)
    heat = source(page, "#heat img")
    page.find_element("css selector", "#encoder input").click()
    until(lambda: page.find_elements("css selector", "[role=option]"), "the list")[1].click()
    changed(page, "#heat img", heat)


def test_the_tabs_show_heads_and_pairs(page: Any) -> None:
    tabs = page.find_elements("css selector", "button[role=tab]")
    tabs[1].click()
    until(lambda: len(page.find_elements("css selector", "#heads img")) == 4, "three heads and their mean")
    first = source(page, "#heads img")
    page.find_elements("css selector", "#asks input")[1].click()
    changed(page, "#heads img", first)
    tabs[2].click()
    lines = until(lambda: source(page, "#lines img"), "lines")
    assert "each other's most similar" in words(page, "#pair-said")
    page.find_elements("css selector", "#others button")[4].click()
    changed(page, "#lines img", lines)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_asks_nobody_else(browser: Any, server: str, width: int) -> None:
    browser.get_log("performance"), browser.get_log("browser")  # a page that is left complains of its broken streams
    browser.switch_to.new_window("tab")
    browser.get(server)
    until(lambda: source(browser, "#mask img") and source(browser, "#found img"), "the first answer")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    missing = browser.execute_script("return [...document.images].filter(i => !i.alt.trim()).map(i => i.outerHTML)")
    assert missing == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert len(asked) > 5 and [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
