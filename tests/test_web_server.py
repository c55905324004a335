"""Proves that the browser page is served to this machine alone, with the headers that threads need, and nothing beside
it: no address leads out of the lists of its files, whatever it contains and whatever lies in the folders."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_text_bundle
from conftest import Refusal
from web_page import needed

from runtime.__main__ import main
from runtime.bundle import open_bundle
from runtime.errors import BundleError, DiffusionError
from runtime.web_server import POLICY, PageServer
from runtime.web_site import HOST, chosen_bundles, models_site, page_site

ROOT = Path(__file__).parents[1]
PAGE = b"<!doctype html><title>page</title>"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A folder as the JavaScript host's, with a page of four files, one of them of an npm package."""
    files = {
        "web/index.html": PAGE,
        "web/site.json": json.dumps(
            {
                "always": ["index.html", "loop.mjs", "vendor/engine.wasm"],
                "when_used": ["web/more.mjs"],
                "files": {"index.html": "web/index.html", "vendor/engine.wasm": "node_modules/engine/engine.wasm"},
            }
        ).encode(),
        "web/more.mjs": b"export {};",
        "loop.mjs": b"export {};",
        "node_modules/engine/engine.wasm": b"\0asm",
        "node_modules/engine/package.json": b"{}",
        "secret.txt": b"secret",
    }
    folder = tmp_path / "host"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Served:
    """A running server, and how it is asked."""

    def __init__(self, server: PageServer) -> None:
        self.port = server.port

    def get(self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
        """Ask for a target exactly as it stands, which no client would tidy up first."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        own = {"Host": f"127.0.0.1:{self.port}"} | dict(headers or {})
        connection.putrequest(method, target, skip_host=True)
        for name, value in own.items():
            connection.putheader(name, value)
        connection.endheaders()
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        return Reply(reply.status, reply.headers, body)


@contextlib.contextmanager
def running(server: PageServer) -> Iterator[Served]:
    """A server that runs until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Served(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def served(host: Path, tiny_models: Path) -> Iterator[Served]:
    bundles = [open_bundle(tiny_models / name) for name in ("tiny", "tiny-text")]
    with running(PageServer(page_site(host) | models_site(bundles), 0)) as own:
        yield own


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/?a=b", "text/html; charset=utf-8"),
        ("/loop.mjs", "text/javascript; charset=utf-8"),
        ("/web/more.mjs", "text/javascript; charset=utf-8"),
        ("/vendor/engine.wasm", "application/wasm"),
        ("/site.json", "application/json"),
        ("/models.json", "application/json"),
        ("/models/tiny/manifest.json", "application/json"),
        ("/models/tiny/unet.onnx", "application/octet-stream"),
        ("/models/tiny-text/tokenizer.json", "application/json"),
    ],
)
def test_what_is_served_has_its_type_and_isolates_the_page(served: Served, target: str, kind: str) -> None:
    reply = served.get(target)
    assert reply.status == 200
    assert reply.headers["Content-Type"] == kind
    assert int(reply.headers["Content-Length"]) == len(reply.body) > 0
    assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert reply.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self' 'wasm-")
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


def test_what_is_served_are_the_files(served: Served, host: Path, tiny_models: Path) -> None:
    assert served.get("/").body == PAGE
    assert served.get("/models/tiny/unet.onnx").body == (tiny_models / "tiny" / "unet.onnx").read_bytes()
    bundle = open_bundle(tiny_models / "tiny")
    listed = json.loads(served.get("/models.json").body)["models"]
    assert listed[0] == {"name": "tiny", "sha256": bundle.sha256}
    assert [model["name"] for model in listed] == ["tiny", "tiny-text"]


@pytest.mark.parametrize(
    "target",
    [
        "/secret.txt",
        "/web/index.html",
        "/node_modules/engine/engine.wasm",
        "/node_modules/engine/package.json",
        "/web",
        "/web/",
        "/models",
        "/models/",
        "/models/tiny",
        "/models/tiny/",
        "/models/nobody/manifest.json",
        "/models/tiny/../tiny/manifest.json",
        "/models/tiny/conformance.safetensors",
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/web/../secret.txt",
        "/web/..%5c..%5csecret.txt",
        "//etc/passwd",
        "/%2Fetc/passwd",
        "/loop.mjs/",
        "/loop.mjs%00",
        "/LOOP.MJS",
        "http://127.0.0.1/secret.txt",
        "*",
    ],
)
def test_nothing_else_is_served(served: Served, target: str) -> None:
    reply = served.get(target)
    assert reply.status == 404
    assert b"secret" not in reply.body
    assert b"root:" not in reply.body


@pytest.mark.parametrize("name", ["evil.html", "evil.js", "evil.svg", "evil.mjs", "evil", "evil.HTML", "evil.css"])
def test_a_file_of_a_bundle_is_never_a_page_or_a_script(tiny_models: Path, name: str) -> None:
    folder = tiny_models / "tiny"
    (folder / "unet.onnx").rename(folder / name)
    manifest = (folder / "manifest.json").read_text().replace('"unet.onnx"', f'"{name}"')
    (folder / "manifest.json").write_text(manifest)
    with running(PageServer(models_site([open_bundle(folder)]), 0)) as served:
        reply = served.get(f"/models/tiny/{name}")
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/octet-stream")
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert served.get("/models/tiny/manifest.json").headers["Content-Type"] == "application/json"


def test_what_becomes_a_link_after_the_server_began_is_not_followed(served: Served, host: Path) -> None:
    (host / "loop.mjs").unlink()
    assert served.get("/loop.mjs").status == 404
    (host / "loop.mjs").symlink_to(host / "secret.txt")
    assert served.get("/loop.mjs").status == 404
    assert served.get("/").status == 200


@pytest.mark.parametrize("name", ["loop.mjs", "node_modules/engine/engine.wasm"])
def test_a_link_that_leaves_the_folder_is_refused_at_the_start(host: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    (host / name).unlink()
    (host / name).symlink_to(outside)
    with pytest.raises(DiffusionError, match="link that leaves"):
        page_site(host)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST"])
def test_it_is_called_by_the_names_of_this_machine(served: Served, name: str) -> None:
    assert served.get("/", headers={"Host": f"{name}:{served.port}"}).status == 200


@pytest.mark.parametrize(
    "named", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil:{port}", ""]
)
def test_another_name_for_this_machine_is_refused(served: Served, named: str) -> None:
    reply = served.get("/", headers={"Host": named.format(port=served.port)})
    assert reply.status == 421
    assert PAGE not in reply.body


def test_it_listens_on_the_loopback_interface_alone(served: Served) -> None:
    with PageServer({}, 0) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"


def test_head_has_the_headers_and_no_body(served: Served) -> None:
    reply = served.get("/loop.mjs", "HEAD")
    assert (reply.status, reply.headers["Content-Length"], reply.body) == (200, "10", b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE"])
def test_nothing_is_taken(served: Served, method: str) -> None:
    assert served.get("/", method).status == 501


def test_what_the_browser_has_is_not_sent_again(served: Served, host: Path) -> None:
    tag = served.get("/loop.mjs").headers["ETag"]
    again = served.get("/loop.mjs", headers={"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")
    (host / "loop.mjs").write_bytes(b"export { };")
    changed = served.get("/loop.mjs", headers={"If-None-Match": tag})
    assert (changed.status, changed.body) == (200, b"export { };")


def test_a_caller_that_hangs_up_is_no_error(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.sendall(f"GET /models/tiny/unet.onnx HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode())
    assert served.get("/").status == 200
    assert capfd.readouterr().err == ""


def test_a_file_of_the_page_that_is_missing_is_named(host: Path) -> None:
    (host / "loop.mjs").unlink()
    with pytest.raises(DiffusionError, match=r"loop\.mjs is not there"):
        page_site(host)


def test_without_the_npm_modules_it_is_said_how_to_get_them(host: Path) -> None:
    (host / "node_modules" / "engine" / "engine.wasm").unlink()
    with pytest.raises(DiffusionError, match=re.escape(f"run: npm ci --ignore-scripts --prefix {host}")):
        page_site(host)


def test_all_bundles_that_are_found_are_offered_but_for_broken_ones(models: Path) -> None:
    (models / "broken").mkdir()
    (models / "broken" / "manifest.json").write_text("{}")
    tiny_text_bundle.write(models / "other", told=True).rename(models / "inpainting")
    bundles, said = chosen_bundles([])
    assert [bundle.name for bundle in bundles] == ["tiny", "tiny-text"]
    broken, inpainting = said
    assert re.fullmatch(r"left out: .*broken.*manifest\.json.*", broken)
    assert inpainting == "left out: inpainting fills in parts of pictures, which the page does not do"


def test_bundles_that_are_asked_for_come_in_that_order(models: Path) -> None:
    bundles, said = chosen_bundles(["tiny-text", "tiny"])
    assert [bundle.name for bundle in bundles] == ["tiny-text", "tiny"]
    assert said == []


def test_two_bundles_of_one_name_are_refused(models: Path, tmp_path: Path) -> None:
    again = tiny_text_bundle.write(tmp_path / "again")
    with pytest.raises(BundleError, match="two bundles are called tiny-text"):
        models_site([open_bundle("tiny-text"), open_bundle(again)])


def test_a_large_bundle_is_offered_only_when_it_is_asked_for(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.web_site.MAX_BYTES", 1500)
    bundles, said = chosen_bundles([])
    assert [bundle.name for bundle in bundles] == ["tiny"]
    assert said == ["left out: tiny-text has 0.0 GB; --model tiny-text offers it all the same"]
    assert [bundle.name for bundle in chosen_bundles(["tiny-text"])[0]] == ["tiny-text"]


def test_where_there_is_no_bundle_it_is_said(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_ANYWHERE_MODELS", str(models / "nowhere"))
    with pytest.raises(BundleError, match="there is no bundle to draw with; name one with --model"):
        chosen_bundles([])


@pytest.mark.parametrize("port", ["-1", "65536", "99999999999", "http", "", "1.5", "٣"])
def test_a_port_that_is_none_is_refused(models: Path, refusal: Refusal, port: str) -> None:
    assert "must be a whole number from 0 to 65535" in refusal(main, "web", f"--port={port}")


def test_a_model_that_is_not_there_is_refused(models: Path, refusal: Refusal) -> None:
    assert "there is no bundle 'nobody'" in refusal(main, "web", "--model", "nobody", "--port", "0")


def test_a_port_in_use_is_said(host: Path, models: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    monkeypatch.setattr("runtime.web_command.page_site", lambda: page_site(host))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} is in use" in refusal(main, "web", "--model", "tiny", "--port", port)


SERVE = """
import sys
from pathlib import Path
from runtime import web_command, web_site
web_command.page_site = lambda: web_site.page_site(Path(sys.argv[1]))
from runtime.__main__ import main
sys.exit(main(["web", "--model", "tiny", "--port", "0"]))
"""


def test_ctrl_c_ends_it_without_a_complaint(host: Path, models: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SERVE, str(host)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "models: tiny\n"
        told = re.match(r"the page is at http://127\.0\.0\.1:(\d+)/ ", process.stdout.readline())
        assert told
        connection = http.client.HTTPConnection("127.0.0.1", int(told[1]), timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().read() == PAGE
        process.send_signal(signal.SIGINT)
        rest, error = process.communicate(timeout=60)
    assert (process.returncode, rest, error) == (0, "\n", "")


def test_in_ci_what_the_tests_of_the_page_need_may_not_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        needed(None, "there is no browser")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        needed(None, "there is no browser")
    assert needed("one", "there is no browser") == "one"
    assert '\nexport CI="${CI:-true}"\n' in (ROOT / ".ci" / "run").read_text()


def test_the_page_says_the_same_policy_for_hosts_that_set_no_headers() -> None:
    page = (HOST / "web" / "index.html").read_text("utf-8")
    assert f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">' in page


def imports(path: Path) -> set[Path]:
    """The modules beside it that a module imports."""
    found = re.findall(r"(?:from|import)\s*\(?\s*\"(\.{1,2}/[^\"]+)\"", path.read_text("utf-8"))
    return {Path(os.path.normpath(path.parent / name)) for name in found}


def test_the_list_of_files_has_all_that_the_page_needs_and_nothing_else() -> None:
    listed = json.loads((HOST / "web" / "site.json").read_text("utf-8"))
    addresses = {HOST / address for address in listed["always"] + listed["when_used"]}
    needed: set[Path] = set()
    pending = {HOST / "web" / name for name in ("app.mjs", "worker.mjs")}
    while pending - needed:
        needed |= pending
        pending = {each for path in pending if path.is_relative_to(HOST) for each in imports(path) if each.exists()}
    named = {path for path in addresses if path.suffix == ".mjs" and path.parent.name != "vendor"}
    assert named == needed
    vendor = {each for path in needed for each in imports(path) if each.parent.name == "vendor"}
    assert vendor == {path for path in addresses if path.parent.name == "vendor" and path.suffix == ".mjs"}
    page = (HOST / "web" / "index.html").read_text("utf-8")
    assert {HOST / name for name in re.findall(r'(?:href|src)="([^"]+)"', page)} <= addresses
    own = {path for path in (HOST / "web").iterdir() if path.name not in {"site.json", "build.mjs"}}
    assert {
        HOST / listed["files"].get(str(each.relative_to(HOST)), each.relative_to(HOST)) for each in addresses
    } >= own
