"""The browser page under test: where Chromium is, servers that run for a while, and an open page with what it says."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import math
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
MNIST = ROOT / "models_onnx" / "mnist-paper"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 240_000  # milliseconds, for machines that are busy with something else
SCREENSHOTS_VARIABLE = "DIFFUSION_ANYWHERE_SCREENSHOTS"
LEAST_DB = 45.0  # of a picture beside Python's
Site = dict[str, bytes | Path]
Needed = TypeVar("Needed")


def needed(what: Needed | None, otherwise: str) -> Needed:
    """What a test cannot do without: where it is missing the test is skipped, and in continuous integration fails."""
    if what is None and os.environ.get("CI"):
        pytest.fail(otherwise, pytrace=False)
    if what is None:
        pytest.skip(otherwise, allow_module_level=True)
    return what


def playwright_api() -> Any:
    """What drives the browser."""
    found = importlib.util.find_spec("playwright")  # most tests need no browser
    needed(found, "there is no playwright, which drives the browser; it is in [dev]")
    return importlib.import_module("playwright.sync_api")


def chromium(playwrights_own: str) -> str:
    """The one that CHROMIUM names, else the machine's, else Playwright's own; without any the test is skipped."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    own = playwrights_own if Path(playwrights_own).exists() else None
    otherwise = (
        "there is no Chromium; python -m playwright install --with-deps chromium, or on Debian apt-get install it"
    )
    return needed(found or own, otherwise)


Server = TypeVar("Server", bound=http.server.HTTPServer)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """A server that runs until the block ends, and then answers nobody, not even on connections that are open."""
    connections: list[tuple[socket.socket, Any]] = []
    accept = server.get_request

    def remembered() -> Any:
        connections.append(accepted := accept())
        return accepted

    server.get_request = remembered  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for connection, _ in connections:
            with contextlib.suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)


class Opened(NamedTuple):
    """A page, and what it has complained of in the browser's console."""

    page: Any
    errors: list[str]

    def wait(self, status: str) -> None:
        """Wait until the page says that."""
        playwright_api().expect(self.page.locator("#status")).to_have_text(re.compile(status), timeout=PATIENCE)

    def draw(self) -> None:
        """Have the picture drawn that the form asks for."""
        self.page.click("#draw")
        self.wait("^Drawn in")

    def screenshot(self, name: str) -> None:
        """Save the whole page as NAME.png in the folder that the environment names, if it names one."""
        if folder := os.environ.get(SCREENSHOTS_VARIABLE):
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def download(self, folder: Path) -> Path:
        """The picture as a file in a folder."""
        with self.page.expect_download(timeout=PATIENCE) as downloading:
            self.page.click("#download")
        path = folder / downloading.value.suggested_filename
        downloading.value.save_as(path)
        return path


Open = Callable[..., Opened]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Of two pictures of uint8, in decibels."""
    assert first.shape == second.shape
    error = np.square(first.astype(np.float64) - second).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def texts(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        return dict(picture.info)
