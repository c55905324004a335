"""Proves that the browser page says in a line why a model is not there, that it needs no server once it was, and that
it can be served by any host, asks nobody else, and proves itself."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from web_page import LEAST_DB, MNIST, PATIENCE, Open, Opened, Site, chromium, needed, pixels, psnr, serving

from runtime import load
from runtime.bundle import open_bundle
from runtime.web_server import PageHandler, PageServer
from runtime.web_site import HOST, models_site

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser; it is in [dev]")
expect = sync_api.expect

pytestmark = pytest.mark.slow


def test_a_damaged_model_is_said_and_not_kept(open_page: Open, page_files: Site, tiny: Path) -> None:
    whole = models_site([open_bundle(tiny)])
    model = (tiny / "unet.onnx").read_bytes()
    site = page_files | whole | {"models/tiny/unet.onnx": bytes([model[0] ^ 1]) + model[1:]}
    with serving(PageServer(site, 0)) as server:
        opened = open_page(server.url)
        opened.wait("The model is not there")
        expect(opened.page.locator("#problem")).to_contain_text("tiny/unet.onnx is damaged")
        site["models/tiny/unet.onnx"] = model
        opened.page.click("#retry")
        opened.wait("^Ready$")
        expect(opened.page.locator("#problem")).to_be_hidden()
        opened.draw()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda value: value | {"format_version": 2}, "format_version"),
        (lambda value: {"name": "tiny"}, "format_version"),
        (lambda value: [], "manifest.json"),
    ],
)
def test_a_model_that_this_page_does_not_know_is_said(
    open_page: Open, page_files: Site, tiny: Path, change: Callable[[Any], Any], line: str
) -> None:
    manifest = json.dumps(change(json.loads((tiny / "manifest.json").read_text()))).encode()
    listed = {"models": [{"name": "tiny", "sha256": hashlib.sha256(manifest).hexdigest()}]}
    site = page_files | models_site([open_bundle(tiny)])
    site |= {"models/tiny/manifest.json": manifest, "models.json": json.dumps(listed).encode()}
    with serving(PageServer(site, 0)) as server:
        opened = open_page(server.url)
        opened.wait("The model is not there")
        expect(opened.page.locator("#problem")).to_contain_text(line)
        assert "\n" not in opened.page.inner_text("#problem")


def test_a_part_of_the_page_that_is_missing_is_said(open_page: Open, page_files: Site, tiny: Path) -> None:
    site = page_files | models_site([open_bundle(tiny)])
    loop = site.pop("diffuse.mjs")
    with serving(PageServer(site, 0)) as server:
        opened = open_page(server.url)
        opened.wait("The model is not there")
        expect(opened.page.locator("#problem")).to_have_text(
            "What draws has stopped: a part of the page cannot be loaded"
        )
        workers: list[Any] = []
        opened.page.on("worker", lambda worker: workers.append(worker))
        opened.page.wait_for_timeout(500)
        assert workers == []  # it is not tried again and again
        site["diffuse.mjs"] = loop
        opened.page.click("#retry")
        opened.wait("^Ready$")
    assert workers != []


class BreakingHandler(PageHandler):
    """Hangs up half-way through every graph."""

    def copy(self, content: Any, length: int) -> None:
        breaks = self.path.endswith(".onnx") and self.server.breaking
        super().copy(content, length // 2 if breaks else length)
        self.close_connection = self.close_connection or breaks


def test_a_lost_connection_is_said_and_can_be_mended(open_page: Open, page_files: Site, tiny: Path) -> None:
    server = PageServer(page_files | models_site([open_bundle(MNIST), open_bundle(tiny)]), 0)
    server.RequestHandlerClass, server.breaking = BreakingHandler, True
    with serving(server):
        opened = open_page(server.url)
        opened.wait("The model is not there")
        size = (MNIST / "unet-fp32.onnx").stat().st_size
        problem = opened.page.locator("#problem")
        lost = rf"mnist-paper/unet-fp32\.onnx: the connection was lost after \d+ of {size} bytes\. Try again"
        expect(problem).to_have_text(re.compile(lost))
        server.breaking = False
        opened.page.click("#retry")
        opened.wait("^Ready$")
    opened.page.select_option("#model", label="tiny")
    opened.wait("The model is not there")
    expect(problem).to_contain_text("there is no connection to 127.0.0.1")
    assert [error for error in opened.errors if "net::ERR" not in error] == []  # what the browser says of its own
    opened.errors.clear()


def test_after_it_was_there_once_it_needs_no_server(
    open_page: Open, page_files: Site, tiny: Path, tmp_path: Path
) -> None:
    with serving(PageServer(page_files | models_site([open_bundle(tiny)]), 0)) as server:
        opened = open_page(f"{server.url}#class=dog&seed=5")
        opened.draw()
        first = opened.download(tmp_path)
        expect(opened.page.locator("#about-offline")).to_contain_text("it works offline", timeout=PATIENCE)
    opened.page.reload()
    opened.wait("^Ready$")
    assert opened.page.evaluate("crossOriginIsolated")
    opened.draw()
    assert opened.download(tmp_path / "again").read_bytes() == first.read_bytes()
    assert [error for error in opened.errors if "net::ERR" not in error] == []
    opened.errors.clear()


def test_nothing_is_asked_of_anybody_else(open_page: Open, address: str) -> None:
    opened = open_page(f"{address}#model=tiny")
    asked: list[str] = []
    opened.page.context.on("request", lambda request: asked.append(request.url))
    opened.wait("^Ready$")
    opened.page.reload()
    opened.wait("^Ready$")
    opened.draw()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((address, "blob:"))] == []
    refused = "fetch('https://example.com/').then(() => 'sent', () => 'refused')"
    assert opened.page.evaluate(refused) == "refused"
    assert [error for error in opened.errors if "Content Security Policy" not in error] == []
    assert opened.errors
    opened.errors.clear()


def test_the_browser_proves_itself_by_the_conformance_file(open_page: Open, address: str) -> None:
    opened = open_page(f"{address}#model=mnist-paper")
    opened.wait("^Ready$")
    opened.page.click("#check")
    opened.wait(r"^Checked: (\d+) of \1 cases of mnist-paper pass in this browser$")


def test_any_web_host_can_serve_what_is_built(open_page: Open, page_files: Site, tiny: Path, tmp_path: Path) -> None:
    """One that sets no headers, in a folder below its top: first in one thread, when it is opened again in several."""
    node = needed(shutil.which(os.environ.get("NODE", "node")), "there is no Node.js; install version 20 or later")
    folder = tmp_path / "host" / "some" / "folder"
    command = [node, "web/build.mjs", "--out", folder, tiny, MNIST]
    subprocess.run(list(map(str, command)), cwd=HOST, check=True, capture_output=True, timeout=300)

    class Plain(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Plain, directory=str(tmp_path / "host"))
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        opened = open_page(f"http://127.0.0.1:{server.server_address[1]}/some/folder/#model=tiny&class=owl&seed=1")
        page = opened.page
        opened.draw()
        assert "one thread" in page.inner_text("#about-engine").lower()
        first = opened.download(tmp_path)
        expect(page.locator("#about-offline")).to_contain_text("Load it again", timeout=PATIENCE)
        page.reload()
        opened.wait("^Ready$")
        assert page.evaluate("crossOriginIsolated")
        opened.draw()
        assert opened.download(tmp_path / "again").read_bytes() == first.read_bytes()
    result = load(tiny)(class_labels=2, seed=1)
    assert psnr(pixels(first), result.images[0][..., 0]) >= LEAST_DB


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has no second thread to give")
def test_where_the_page_is_isolated_it_uses_more_than_one_core(open_page: Open, address: str) -> None:
    opened = open_page(f"{address}#model=tiny")
    opened.wait("^Ready$")
    assert re.search(r"by WebAssembly in \d+ threads", opened.page.inner_text("#about-engine"))


@pytest.fixture(scope="module")
def browser_with_webgpu(browser: Any) -> Iterator[Any]:
    """Chromium with a graphics card that the processor imitates."""
    flags = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    own = browser.browser_type.launch(
        executable_path=chromium(browser.browser_type.executable_path), args=flags, timeout=PATIENCE
    )
    yield own
    own.close()


def test_the_graphics_card_draws_the_same_once_it_has_proven_itself(
    browser_with_webgpu: Any, address: str, tmp_path: Path
) -> None:
    opened = Opened(browser_with_webgpu.new_page(), [])
    opened.page.goto(f"{address}#model=mnist-paper&class=7&steps=4&seed=1&engine=webgpu")
    if not opened.page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
        pytest.skip("this Chromium has no WebGPU, not even an imitated one")
    opened.wait("^Ready$")
    assert "by WebGPU" in opened.page.inner_text("#about-engine")
    opened.draw()
    found = psnr(pixels(opened.download(tmp_path)), load(MNIST)(7, seed=1, num_inference_steps=4).images[0][..., 0])
    print(f"mnist-paper by WebGPU in SwiftShader: {found:.1f} dB")
    assert found >= LEAST_DB
    opened.page.select_option("#model", label="tiny")
    opened.wait("^Ready$")
    assert "the processor" in opened.page.inner_text("#about-engine")
    assert "there is nothing to prove it by" in opened.page.inner_text("#notices")
    opened.page.close()
