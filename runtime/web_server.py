"""A server for the browser page, for this machine alone.

It listens on the loopback interface, and answers only those who call it by a name of that interface: another page in
the same browser could otherwise have its own name resolve to this address and read what is served (DNS rebinding).
It gives away what its site lists and nothing else, and takes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from runtime.errors import DiffusionError
from runtime.web_site import MODELS, Site

ADDRESS = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost", "[::1]")
HTTP_PORT = 80  # which a browser does not write down
PIECE = 2**20
IDLE_SECONDS = 60  # after which a connection that says nothing is closed

# By suffix, and not by the machine's own table, which may call a module text/plain.
OCTETS = "application/octet-stream"
TYPES = {
    "": "text/plain; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".wasm": "application/wasm",
}

# What index.html says in a meta element too, for hosts that set no headers, and what only a header can say.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'"
)

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",  # this and the next isolate the page, so that it may have threads
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # may be kept, and is asked for again by its ETag
}


class PageHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        if not self.is_called_by_a_loopback_name():
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "This server answers to loopback addresses only")
            return
        name = unquote(self.path.partition("?")[0]).removeprefix("/")
        content = self.server.site.get(name)
        try:
            if content is None:
                self.send_error(HTTPStatus.NOT_FOUND)
            elif isinstance(content, bytes):
                self.answer(name, BytesIO(content), len(content), hashlib.sha256(content).hexdigest())
            else:
                with open_plain(content) as file:
                    status = os.fstat(file.fileno())
                    self.answer(name or "index.html", file, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")
        except FileNotFoundError:  # it was there when the server began
            self.send_error(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815 - the base class calls it so

    def is_called_by_a_loopback_name(self) -> bool:
        port = self.server.port
        allowed = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == HTTP_PORT else set())
        named = self.headers.get_all("Host", [])
        return len(named) == 1 and named[0].lower() in allowed

    def answer(self, name: str, content: BinaryIO, length: int, tag: str) -> None:
        """Send a file, or only say that the browser has it already."""
        known = self.headers.get("If-None-Match") == f'"{tag}"'
        self.send_response(HTTPStatus.NOT_MODIFIED if known else HTTPStatus.OK)
        self.send_header("ETag", f'"{tag}"')
        if not known:
            self.send_header("Content-Type", content_type(name))
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "GET" and not known:
            self.copy(content, length)

    def copy(self, content: BinaryIO, length: int) -> None:
        """Send as many bytes as were announced. Where a file has become shorter, the connection ends too soon, which
        the browser notices; what has been added is not sent."""
        while length and (piece := content.read(min(length, PIECE))):
            self.wfile.write(piece)
            length -= len(piece)
        self.close_connection = self.close_connection or length > 0

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def version_string(self) -> str:
        return "diffusion-anywhere"

    def log_message(self, *_: object) -> None:
        """Whoever serves a page to themselves knows what they have asked for."""


class PageServer(ThreadingHTTPServer):
    """Serves a site until it is stopped.

    Attributes:
        site: what is served.
        port: that it listens on.
        url: where the page is.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there it would let two servers have one port

    def __init__(self, site: Site, port: int) -> None:
        """Listen.

        Args:
            site: what is served.
            port: 0 is any that is free.

        Raises:
            DiffusionError: the port is taken, or not for this user.
        """
        self.site = site
        try:
            super().__init__((ADDRESS, port), PageHandler)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "is in use" if taken else f"cannot be listened on ({error.strerror})"
            raise DiffusionError(f"port {port} {why}; give another with --port, or 0 for any that is free") from error
        self.port = int(self.server_address[1])
        self.url = f"http://{ADDRESS}:{self.port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing is wrong when a browser has heard enough."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def content_type(name: str) -> str:
    """What a browser is to take an address for. A bundle's files are a stranger's, and never a page or a script."""
    suffix = os.path.splitext(name)[1]
    if name.startswith(MODELS) and suffix != ".json":
        return OCTETS
    return TYPES.get(suffix, OCTETS)


def open_plain(path: Path) -> BinaryIO:
    """Open a file that has not become a link or something else since its path was looked at.

    Raises:
        FileNotFoundError: it has, or is not there any more.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise FileNotFoundError(path) from error
    file = os.fdopen(descriptor, "rb")
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return file
    file.close()
    raise FileNotFoundError(path)
