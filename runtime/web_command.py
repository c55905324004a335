"""``python -m runtime web``: pictures drawn in the browser, from a page that this machine serves to itself."""

from __future__ import annotations

import argparse
import contextlib
import webbrowser

from runtime.errors import RequestError
from runtime.web_server import PageServer
from runtime.web_site import chosen_bundles, models_site, page_site

DEFAULT_PORT = 8765
MAX_PORT = 2**16 - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=serve)
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="BUNDLE",
        help="a bundle's folder or name, as often as you like; without it all that are found by name",
    )
    parser.add_argument(
        "--port", default=str(DEFAULT_PORT), help="to listen on; 0 is any that is free (default: %(default)s)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in your browser")


def serve(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    port = parse_port(arguments.port)
    bundles, said = chosen_bundles(arguments.model)
    with PageServer(page_site() | models_site(bundles), port) as server, contextlib.suppress(KeyboardInterrupt):
        for line in said:
            print(line)
        print(f"models: {', '.join(bundle.name for bundle in bundles)}")
        print(f"the page is at {server.url} for this machine alone; Ctrl-C ends it", flush=True)
        if arguments.open:
            webbrowser.open(server.url)
        server.serve_forever()
    print()
    return 0


def parse_port(text: str) -> int:
    """A port's number.

    Raises:
        RequestError: it is none.
    """
    if text.isascii() and text.isdecimal() and len(text) < 6 and int(text) <= MAX_PORT:
        return int(text)
    raise RequestError(f"port {text!r} must be a whole number from 0 to {MAX_PORT}")
