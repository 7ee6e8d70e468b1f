"""The page in a real browser, as visitors use it: all tasks, by example, upload, drawing and brush, also on a phone."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU: editors and the 3-D view
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 90  # seconds


class Visitor:
    """A browser at the page."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.until(lambda: self.seen("#generate"))

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for something true, and return it."""
        from selenium.common.exceptions import WebDriverException

        begun = time.monotonic()
        while time.monotonic() - begun < PATIENCE:
            with contextlib.suppress(WebDriverException):
                if found := condition():
                    return found
            time.sleep(0.2)
        raise AssertionError(f"not within {PATIENCE} s; the page says {self.status!r}")

    def seen(self, selector: str) -> list[Any]:
        """Elements that are visible."""
        found = self.driver.find_elements("css selector", selector)
        return [element for element in found if element.is_displayed()]

    def click(self, selector: str, index: int = 0, text: str | None = None) -> None:
        """Click a visible element, by its text or its place among those of the selector."""

        def go() -> bool:
            elements = [each for each in self.seen(selector) if text is None or each.text.strip() == text]
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", elements[index])
            elements[index].click()
            return True

        self.until(lambda: len(self.seen(selector)) > index)
        self.until(go)

    def open(self, tab: str) -> None:
        self.click("button[role=tab]", text=tab)
        self.until(lambda: any(each.text.strip() == tab for each in self.seen("button[role=tab].selected")))

    @property
    def status(self) -> str:
        return self.driver.find_element("id", "status").text

    def run(self, button: str) -> str:
        """Press a task's button; returns what is said when its result is there."""
        before = self.seed()  # each run has a new one, which is said
        self.click(f"#{button}")
        return self.until(lambda: self.status if self.seed() not in (None, before) else None)

    def seed(self) -> str | None:
        """Seed of the result that is shown; the line may also say how long the next one waits."""
        found = re.match(r"Seed (\d+), \d+ steps?, [\d.]+ s", self.status)
        return found and found[1]

    def pictures(self) -> list[Any]:
        """The result's pictures, as far as they are loaded."""
        self.open("Pictures")
        loaded = "return arguments[0].complete && arguments[0].naturalWidth > 0"
        return [image for image in self.seen("#pictures img") if self.driver.execute_script(loaded, image)]

    def paint(self, editor: str) -> None:
        """Draw a stroke in the middle of an editor."""
        from selenium.webdriver import ActionChains

        canvas = self.until(lambda: self.seen(f"#{editor} canvas"))[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        time.sleep(2)  # the sheet is drawn some frames later, and nothing in the page says when
        stroke = ActionChains(self.driver).move_to_element(canvas).click_and_hold()
        for x, y in ((15, 5), (-30, 5), (30, 5), (-15, 5)):
            stroke = stroke.move_by_offset(x, y)
        stroke.release().perform()
        time.sleep(0.5)

    def elsewhere(self) -> set[str]:
        """Addresses that the browser asked for and that are not this page's."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
        own = ("http://127.0.0.1:", "data:", "blob:", "chrome", "about:")
        return {address for address in asked if not address.startswith(own)}

    def width(self) -> tuple[int, int]:
        """Of the page's content, and of the window."""
        return tuple(self.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]"))


@contextlib.contextmanager
def visiting(url: str, profile: Path, phone: bool = False) -> Iterator[Visitor]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in (*OPTIONS, f"--user-data-dir={profile}", "--window-size=1280,1000"):
        options.add_argument(option)
    if phone:
        metrics = {"width": 390, "height": 844, "pixelRatio": 2.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Visitor(driver, url)
    except BaseException:
        with contextlib.suppress(Exception):
            driver.save_screenshot(str(profile / "failed.png"))
        raise
    finally:
        driver.quit()


def test_all_tasks_at_a_desk(url: str, tmp_path: Path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)).save(photo)
    with visiting(url, tmp_path / "profile") as page:
        # Generate, with previews on the way
        assert "25 steps" in page.run("generate")
        assert len(page.until(page.pictures)) == 4
        # Compare two modalities, look at the shape, list the files
        page.open("Compare")
        assert len(page.until(lambda: page.seen("#slider img"))) >= 2
        page.open("3-D")
        page.click("#build")  # an empty field of view: estimated, or assumed where there is no surface
        page.until(lambda: page.seen("#shape canvas"))
        assert page.until(lambda: page.seen("#camera")[0].text).startswith("Camera: ")
        page.open("Files")
        page.until(lambda: page.seen("#files")[0].text)
        listed = page.driver.find_element("tag name", "body").text.replace("\n", "")
        exr = ("depth.exr", "normal.exr") if find_spec("OpenEXR") else ("multimodal-dit[exr]",)
        for name in ("rgb.png", "depth.npy", "normal.npy", "segmentation.png", "metadata.json", ".glb", *exr):
            assert name in listed
        # Understand: an example, then an upload
        page.open("Understand")
        page.click(".examples button.thumbnail-item", index=1)
        page.until(lambda: page.seen("#image img"))
        assert "1 step," in page.run("understand")
        page.click("#image button[aria-label='Clear'], #image button[aria-label='Remove Image']")
        field = page.until(lambda: page.driver.find_elements("css selector", "#image input[type=file]"))[0]
        field.send_keys(str(photo))
        page.until(lambda: page.seen("#image img"))
        page.run("understand")
        # Translate the result, without its normals
        page.click("button", text="Translate this RGB")
        page.until(lambda: page.seen("#source img"))
        page.click("#keep label", text="normal")
        page.run("translate")
        # Condition: nothing drawn is one line; then a drawing
        page.open("Condition")
        page.click("#condition")
        error = page.until(lambda: page.seen(".toast-body"))[0].text
        assert "depth is chosen as given, and has neither a file nor a drawing" in error
        page.click(".toast-close")
        page.open("depth: drawing")
        page.paint("sheet_depth")
        page.run("condition")
        # Edit the result with a brush
        page.click("button", text="Edit this RGB")
        page.until(lambda: page.seen("#editor canvas"))
        page.paint("editor")
        page.run("edit")
        assert len(page.until(page.pictures)) == 4
        assert page.elsewhere() == set()


def test_a_phone(url: str, tmp_path: Path):
    with visiting(url, tmp_path / "profile", phone=True) as page:
        content, window = page.width()
        assert content <= window
        assert [each.text for each in page.seen("#tasks > .tab-wrapper button[role=tab]")] == [
            "Generate",
            "Understand",
            "Condition",
            "Translate",
            "Edit",
        ]
        page.run("generate")
        assert len(page.until(page.pictures)) == 4
        left, right = [image.rect for image in page.seen("#pictures img")][:2]
        assert left["y"] == right["y"]
        assert right["x"] + right["width"] <= window
        page.open("Condition")
        page.open("depth: drawing")
        page.until(lambda: page.seen("#sheet_depth canvas"))
        page.open("Understand")
        page.click(".examples button.thumbnail-item", index=2)
        page.run("understand")
        content, window = page.width()
        assert content <= window


def test_words_and_a_painted_subject(serve, prompted_pipeline_dir: Path, tmp_path: Path):
    pipe = MultimodalDiTPipeline.from_pretrained(prompted_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 24), (200, 30, 30)).save(photo)
    with serve(pipe, model="words") as url, visiting(url, tmp_path / "profile") as page:
        page.seen("#generate_prompt textarea, #generate_prompt input")[0].send_keys("a red {torus}")
        page.click("#subjects > button")
        page.until(lambda: page.seen("#subject_1 canvas"))
        page.driver.find_elements("css selector", "#subject_1 input[type=file]")[0].send_keys(str(photo))
        time.sleep(2)  # it comes back larger
        page.paint("subject_1")
        page.run("generate")
        assert len(page.until(page.pictures)) == 4
        # Another task, with the subject of the same picture
        page.click("button", text="Translate this RGB")
        page.until(lambda: page.seen("#source img"))
        page.seen("#translate_prompt textarea, #translate_prompt input")[0].send_keys("a {cone}")
        page.run("translate")
        assert len(page.until(page.pictures)) == 4
