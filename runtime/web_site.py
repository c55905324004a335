"""The files of the browser page: which address is which file.

Nothing is looked for in a folder: the page's files are those that its own list names, ``web/site.json`` in the folder
of the JavaScript host, and a bundle's are those of its manifest. So no address, whatever it contains, leads elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from runtime.bundle import CONFORMANCE, DEFAULT_MODEL, MANIFEST, Bundle, known_names, open_bundle
from runtime.errors import BundleError, DiffusionError

HOST = Path(__file__).parent / "hosts" / "js"
SITE = "web/site.json"
MODULES = "node_modules"
MODELS = "models/"  # what the addresses of bundles begin with
MAX_BYTES = 2**30  # of a bundle that is offered without being asked for; a page has 4 GB of memory for everything


Site = Mapping[str, bytes | Path]
"""Content, or the file that has it, by address without the slash at its beginning."""


def page_site(host: Path = HOST) -> dict[str, bytes | Path]:
    """The page's own files, those of the npm packages among them.

    Args:
        host: the folder of the JavaScript host.

    Raises:
        DiffusionError: a file is missing, or lies outside the folder.
    """
    listed = json.loads((host / SITE).read_text("utf-8"))
    names = {address: listed["files"].get(address, address) for address in listed["always"] + listed["when_used"]}
    missing = [name for name in names.values() if not (host / name).is_file()]
    if any(name.startswith(MODULES) for name in missing):
        raise DiffusionError(f"the page's npm modules are not installed; run: npm ci --ignore-scripts --prefix {host}")
    if missing:
        raise DiffusionError(
            f"{host / missing[0]} is not there; install the package, or check out the repository, anew"
        )
    site: dict[str, bytes | Path] = {address: inside(host, name) for address, name in names.items()}
    return site | {"": site["index.html"], "site.json": inside(host, SITE)}


def inside(folder: Path, name: str) -> Path:
    """Where a file lies when all links are followed, which has to be in its folder.

    Raises:
        DiffusionError: it lies elsewhere.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DiffusionError(f"{folder / name} is a link that leaves {folder}; put the file itself there")
    return path


def models_site(bundles: Sequence[Bundle]) -> dict[str, bytes | Path]:
    """The files of bundles, and ``models.json``, which lists them in order, by name and SHA-256 of the manifest.

    Raises:
        BundleError: two have the same name, or one has files that say no hash, as folders of others do.
    """
    site: dict[str, bytes | Path] = {}
    listed = []
    for bundle in bundles:
        if not (bundle.folder / MANIFEST).is_file():
            raise BundleError(f"{bundle.folder} has no {MANIFEST}, which the page needs; make a bundle of it")
        begin = f"{MODELS}{bundle.name}/"
        if f"{begin}{MANIFEST}" in site:
            raise BundleError(f"two bundles are called {bundle.name}; a page has one of each name")
        site[f"{begin}{MANIFEST}"] = (bundle.folder / MANIFEST).read_bytes()
        for file in bundle.files():
            site[f"{begin}{file.name}"] = bundle.path(file)
        if (bundle.folder / CONFORMANCE).is_file():
            site[f"{begin}{CONFORMANCE}"] = inside(bundle.folder, CONFORMANCE)
        listed.append({"name": bundle.name, "sha256": bundle.sha256})
    return site | {"models.json": json.dumps({"models": listed}).encode()}


def chosen_bundles(models: Iterable[str]) -> tuple[list[Bundle], list[str]]:
    """The bundles that the page offers, and what is to be said of those that it does not.

    Args:
        models: folders or names; none is all that are found by name, the default one first, but for large and broken.

    Raises:
        BundleError: one that was asked for is none, or there is none at all.
    """
    asked = [open_bundle(model) for model in models]
    if asked:
        return asked, []
    found: dict[str, Bundle] = {}
    said = []
    for name in sorted(known_names(), key=lambda name: name != DEFAULT_MODEL):
        try:
            bundle = open_bundle(name)
        except BundleError as error:
            said.append(f"left out: {error}")
            continue
        size = sum(file.size for file in bundle.files())
        if size > MAX_BYTES:
            said.append(f"left out: {name} has {size / 1e9:.1f} GB; --model {name} offers it all the same")
        elif len(bundle.unet_input) > 1:
            said.append(f"left out: {name} fills in parts of pictures, which the page does not do")
        elif bundle.name in found:
            said.append(f"left out: {bundle.folder} is called {bundle.name}, as {found[bundle.name].folder} is")
        else:
            found[bundle.name] = bundle
    if not found:
        raise BundleError("; ".join(["there is no bundle to draw with", *said]) + "; name one with --model")
    return list(found.values()), said
