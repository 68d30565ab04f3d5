# SPDX-License-Identifier: Apache-2.0
"""Two ways to use the page: Gradio's client, and a headless browser where there is one."""

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

from gradio_client import Client, handle_file
from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MILLISECONDS = 30_000
LEGEND_ENTRY = re.compile(r'class="name">([^<]*)</span><b>([^<]*)</b>')
FILES = {"overlay": "Overlay video", "labels": "Label track", "statistics": "Statistics", "plot": "Plot"}


@dataclass
class Visit:
    """What a visitor was shown and has downloaded."""

    legend: list[tuple[str, str]]
    num_areas: int
    notice: str
    files: dict[str, Path]


@dataclass
class OpenPage:
    """The page in a browser, and what should not have happened there."""

    page: Page
    problems: list[str] = field(default_factory=list)


def find_browser() -> str | None:
    """Program of a browser that Playwright can drive; warns where there is none."""
    browser = os.environ.get("THEMASK_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        warnings.warn(
            f"The page was used through Gradio's client only: none of {', '.join(BROWSERS)} is installed, and "
            "THEMASK_CHROMIUM names no other browser.",
            stacklevel=2,
        )
    return browser


def visit_with_client(url: str, video: Path, folder: Path) -> Visit:
    """Ask what the button of the page asks."""
    client = Client(url, verbose=False, download_files=folder)
    answers: Any = client.predict(handle_file(video), api_name="/segment")
    notice, _, _, legend, timeline, *downloads = (answer.get("value") for answer in answers)
    entries = [(unescape(name), unescape(share)) for name, share in LEGEND_ENTRY.findall(legend)]
    files = dict(zip(FILES, map(Path, downloads), strict=True))
    return Visit(entries, timeline.count("<path"), unescape(re.sub("<[^>]*>", "", notice)), files)


@contextmanager
def opened_page(browser: str, url: str) -> Iterator[OpenPage]:
    """Open the page in a headless browser with a picture of a camera for a camera."""
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=arguments)
        opened = OpenPage(chromium.new_page(viewport={"width": 1280, "height": 960}))
        own = (url, "data:", "blob:")
        page, problems = opened.page, opened.problems
        page.set_default_timeout(MILLISECONDS)
        page.on("request", lambda request: request.url.startswith(own) or problems.append(f"asks {request.url}"))
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        try:
            yield opened
        finally:
            chromium.close()


def upload(page: Page, video: Path) -> None:
    """Choose a file and press the button."""
    with page.expect_response(lambda response: "/upload" in response.url):
        page.set_input_files("#video input[type=file]", video)
    page.locator("#video video").wait_for()
    page.click("#start")


def seen_result(page: Page, folder: Path) -> Visit:
    """Wait for the result, look at it and download everything."""
    page.locator("#overlay video").wait_for()
    entries = page.locator("#legend li").all()
    legend = [(entry.locator(".name").inner_text(), entry.locator("b").inner_text()) for entry in entries]
    notice = page.locator(".notice")
    files = {}
    for kind, label in FILES.items():
        with page.expect_download() as download:
            page.get_by_role("button", name=label).click()
        files[kind] = folder / download.value.suggested_filename
        download.value.save_as(files[kind])
    num_areas = page.locator("#timeline path").count()
    return Visit(legend, num_areas, notice.inner_text() if notice.count() else "", files)
