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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from web_page import LEAST_DB, MNIST, PATIENCE, Open, Site, chromium, needed, pixels, playwright_api, psnr, serving

from runtime import load
from runtime.bundle import open_bundle
from runtime.web_server import PageHandler, PageServer
from runtime.web_site import HOST, models_site

expect = playwright_api().expect

pytestmark = pytest.mark.slow


def test_a_damaged_model_is_said_and_not_kept(open_page: Open, page_files: Site, tiny: Path) -> None:
    whole = models_site([open_bundle(tiny)])
    model = (tiny / "unet.onnx").read_bytes()
    site = page_files | whole | {"models/tiny/unet.onnx": bytes([model[0] ^ 1]) + model[1:]}
    with serving(PageServer(site, 0)) as server:
        opened = open_page(server.url)
        opened.wait("The model is not there")
        expect(opened.page.locator("#problem")).to_contain_text("tiny/unet.onnx is damaged")
        opened.screenshot("problem-wide")
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


class SlowHandler(PageHandler):
    """Sends every graph in four pieces, with pauses between them."""

    def copy(self, content: Any, length: int) -> None:
        pieces = 4 if self.path.endswith(".onnx") else 1
        for piece in range(pieces):
            super().copy(content, length * (piece + 1) // pieces - length * piece // pieces)
            time.sleep(0.3 if pieces > 1 else 0)


WATCH = """
() => {
  window.seen = [];
  const [status, detail, progress] = ["status", "detail", "progress"].map((id) => document.getElementById(id));
  const note = () => window.seen.push([status.textContent, detail.textContent, progress.value, progress.hidden]);
  new MutationObserver(note).observe(detail, { childList: true });
}
"""


def test_a_model_that_comes_slowly_is_seen_to_come(open_page: Open, page_files: Site, tiny: Path) -> None:
    server = PageServer(page_files | models_site([open_bundle(tiny), open_bundle(MNIST)]), 0)
    server.RequestHandlerClass = SlowHandler
    with serving(server):
        opened = open_page(server.url)
        opened.wait("^Ready$")
        opened.page.evaluate(WATCH)
        opened.page.select_option("#model", label="mnist-paper")
        opened.wait("^Ready$")
        seen = opened.page.evaluate("window.seen")
    size = (MNIST / "unet-fp32.onnx").stat().st_size / 1e6
    fetching = [(detail, value) for status, detail, value, hidden in seen if status == "Fetching mnist-paper"]
    values = [value for _, value in fetching]
    assert values == sorted(values)
    assert len({value for value in values if 0 < value < 1}) >= 3
    for detail, value in fetching:
        assert detail == f"{value * size:.1f} MB of {size:.1f} MB"
    assert opened.page.is_hidden("#progress")


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


def test_a_browser_that_keeps_no_models_draws_all_the_same(open_page: Open, page_files: Site, tiny: Path) -> None:
    site = page_files | models_site([open_bundle(tiny)])
    worker = page_files["web/worker.mjs"]
    assert isinstance(worker, Path)
    site["web/worker.mjs"] = b"caches.open = () => Promise.reject(new Error('not here'));\n" + worker.read_bytes()
    with serving(PageServer(site, 0)) as server:
        opened = open_page(server.url)
        opened.draw()
        expect(opened.page.locator("#about-offline")).to_contain_text("but not the model", timeout=PATIENCE)
        assert opened.page.locator("#notices li").count() == 0  # which a picture has cleared
        opened.page.reload()
        opened.wait("^Ready$")
        assert "does not keep the model" in opened.page.inner_text("#notices")


def test_a_page_that_cannot_be_kept_is_said(open_page: Open, page_files: Site, tiny: Path) -> None:
    site = page_files | models_site([open_bundle(tiny)])
    listed = json.loads((HOST / "web" / "site.json").read_text("utf-8"))
    listed["always"].append("nowhere.mjs")
    site["site.json"] = json.dumps(listed).encode()
    with serving(PageServer(site, 0)) as server:
        opened = open_page(server.url)
        opened.draw()
        line = "This browser does not keep the page: it needs its server whenever it is opened."
        expect(opened.page.locator("#about-offline")).to_have_text(line, timeout=PATIENCE)


def test_what_is_noted_of_a_model_outlives_older_versions_of_it(open_page: Open, page_files: Site, tiny: Path) -> None:
    bundle = open_bundle(tiny)
    with serving(PageServer(page_files | models_site([bundle]), 0)) as server:
        opened = open_page(server.url)
        opened.wait("^Ready$")
        noted, old = f"{server.url}kept/tiny/{bundle.sha256}/proven", f"{server.url}kept/tiny/{'0' * 64}"
        put = "async (url) => (await caches.open('models')).put(url, new Response())"
        for url in (noted, old, f"{old}/proven"):
            opened.page.evaluate(put, url)
        opened.page.reload()
        opened.wait("^Ready$")
        keys = opened.page.evaluate("async () => (await (await caches.open('models')).keys()).map(({ url }) => url)")
    files = [file.sha256 for file in bundle.files()]
    assert sorted(keys) == sorted([noted, *(f"{server.url}kept/tiny/{each}" for each in [bundle.sha256, *files])])


def test_where_one_engine_is_missing_the_other_draws(open_page: Open, page_files: Site, tiny: Path) -> None:
    site = page_files | models_site([open_bundle(tiny)])
    del site["vendor/ort-wasm-simd-threaded.asyncify.wasm"]
    with serving(PageServer(site, 0)) as server:
        opened = open_page(f"{server.url}#engine=webgpu")
        opened.wait("^Ready$")
        assert "(the engine cannot be fetched: " in opened.page.inner_text("#notices")
        assert "the processor" in opened.page.inner_text("#about-engine")
        opened.draw()
    assert [error for error in opened.errors if "404" not in error] == []  # what the browser says of its own
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


def test_one_expected_value_that_is_another_is_found(open_page: Open, page_files: Site, tmp_path: Path) -> None:
    """By ten times its tolerance, in a case of the network."""
    shutil.copytree(MNIST, tmp_path / "moved")
    path = tmp_path / "moved" / "conformance.safetensors"
    with safe_open(path, "numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    cases = json.loads(metadata["cases"])
    case = next(each for each in cases if each["kind"] == "graph")
    tensors[case["outputs"]["out_sample"]].flat[3] += 10 * case["tolerance"]
    save_file(tensors, path, metadata)
    with serving(PageServer(page_files | models_site([open_bundle(tmp_path / "moved")]), 0)) as server:
        opened = open_page(server.url)
        opened.wait("^Ready$")
        opened.page.click("#check")
        opened.wait(r"^Checked: (\d+) of (?!\1)\d+ cases of mnist-paper pass in this browser$")
        (line,) = opened.page.locator("#notices li").all_inner_texts()
    found = re.fullmatch(r"graph unet/fp32 out_sample is off by (\S{1,9}), where (\S{1,9}) is allowed\.", line)
    assert found, line
    assert float(found[2]) == pytest.approx(case["tolerance"], rel=1e-2)  # which are rounded
    assert float(found[1]) > 8 * float(found[2])


def test_any_web_host_can_serve_what_is_built(open_page: Open, page_files: Site, tiny: Path, tmp_path: Path) -> None:
    """One that sets no headers, in a folder below its top: first in one thread, when it is opened again in several."""
    npm = needed(shutil.which("npm"), "there is no npm; install it with Node.js, version 20 or later")
    command = [npm, "run", "build", "--prefix", HOST, "--", "--out", "host/some/folder", tiny, MNIST]
    environment = os.environ | {"npm_config_update_notifier": "false"}
    subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    folder = tmp_path / "host" / "some" / "folder"
    (folder / "other").mkdir()
    (folder / "other" / "index.html").write_text(
        "<!doctype html><title>not the page's</title><link rel=icon href=data:>"
    )

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
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/some/folder/other")  # which the host says is other/
        assert (page.title(), page.evaluate("crossOriginIsolated")) == ("not the page's", False)
        kept = page.evaluate("async () => (await (await caches.open('page')).keys()).map(({ url }) => url)")
        assert [url for url in kept if "other" in url] == []
        assert any(url.endswith("/some/folder/web/app.mjs") for url in kept)
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
    open_page: Open, browser_with_webgpu: Any, address: str, tmp_path: Path
) -> None:
    link = f"{address}#model=mnist-paper&class=7&steps=4&seed=1&engine=webgpu"
    opened = open_page(link, within=browser_with_webgpu)
    if not opened.page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
        pytest.skip("this Chromium has no WebGPU, not even an imitated one")
    opened.wait("^Ready$")
    assert "by WebGPU" in opened.page.inner_text("#about-engine")
    opened.draw()
    found = psnr(pixels(opened.download(tmp_path)), load(MNIST)(7, seed=1, num_inference_steps=4).images[0][..., 0])
    print(f"mnist-paper by WebGPU in SwiftShader: {found:.1f} dB")
    assert found >= LEAST_DB
    expect(opened.page.locator("#about-offline")).to_contain_text("it works offline", timeout=PATIENCE)
    for file in ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"):
        is_kept = "async (url) => Boolean(await (await caches.open('page')).match(url))"
        assert opened.page.evaluate(is_kept, f"{address}vendor/{file}")
    opened.page.select_option("#model", label="tiny")
    opened.wait("^Ready$")
    assert "the processor" in opened.page.inner_text("#about-engine")
    assert "there is nothing to prove it by" in opened.page.inner_text("#notices")
    assert [error for error in opened.errors if "404" not in error] == []  # of its conformance file
    opened.errors.clear()
