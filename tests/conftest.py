"""What the tests share: real digits, where whole data sets lie, a browser with the page, a disk that is soon full, and
which tests this machine cannot run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import web_page

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if WORKERS > 1:
    # The workers share the cores: with a thread for each core in every worker, threads of one would wait for another's.
    # torch reads this when it is imported, and so does every process that a test starts.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

# Tests leave no gigabytes in the home folder; those of the cache of graphs have one of their own.
os.environ.setdefault("DIFFUSION_ANYWHERE_CACHE_GB", "0")

Refusal = Callable[..., str]
DATA_VARIABLE = "DIFFUSION_ANYWHERE_DATA"
MNIST_SAMPLE = Path(__file__).parent / "data" / "mnist-sample.npz"


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell's background job has Ctrl-C ignored, and so has what it starts; its tests need it as in a terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs a command line that must end with status 2 and one line on standard error, which is returned."""

    def refused(main: Callable[[list[str]], int], *arguments: str | Path) -> str:
        try:
            status = main(list(map(str, arguments)))
        except SystemExit as ended:  # argparse's way
            status = int(str(ended.code))
        error = capsys.readouterr().err
        assert status == 2
        assert re.fullmatch(r"error: [^\n]+\n", error)
        return error

    return refused


@pytest.fixture
def tiny_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bundle of classes, ``tiny``, and one of text, ``tiny-text``; the current folder is empty."""
    import tiny_bundle
    import tiny_text_bundle

    models, here = tmp_path / "models", tmp_path / "here"
    tiny_bundle.write(models)
    tiny_text_bundle.write(models)
    here.mkdir()
    monkeypatch.chdir(here)
    return models


@pytest.fixture
def models(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tiny bundles, which are then found by name."""
    monkeypatch.setenv("DIFFUSION_ANYWHERE_MODELS", str(tiny_models))
    return tiny_models


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With more, threads wait for each other longer than small networks compute, on a machine that is busy."""
    import torch  # most tests need no PyTorch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mnist_sample_file() -> Path:
    """The committed digits as a file, in the layout that ``python -m training ddpm --dataset FILE.npz`` reads."""
    return MNIST_SAMPLE


@pytest.fixture(scope="session")
def mnist_sample() -> dict[str, npt.NDArray[np.uint8]]:
    """The committed digits, uint8: x_train (400, 28, 28), y_train (400,), x_test (100, 28, 28), y_test (100,)."""
    with np.load(MNIST_SAMPLE, allow_pickle=False) as archive:
        arrays = dict(archive)
    for array in arrays.values():
        array.flags.writeable = False  # shared by every test of the session
    return arrays


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder with the whole of MNIST; without one the test is skipped, with a wrong one it fails."""
    if not os.environ.get(DATA_VARIABLE):
        pytest.skip(f"{DATA_VARIABLE} is not set; let it name the folder that holds MNIST to run this test")
    folder = Path(os.environ[DATA_VARIABLE])
    if not folder.is_dir():
        pytest.fail(f"{DATA_VARIABLE} is {folder}, which is no folder", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium."""
    with web_page.playwright_api().sync_playwright() as playwright:
        path = web_page.chromium(playwright.chromium.executable_path)
        launched = playwright.chromium.launch(executable_path=path, timeout=web_page.PATIENCE)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def page_files() -> web_page.Site:
    """The page's own files by address."""
    from runtime.web_site import HOST, page_site

    modules = HOST / "node_modules" / "onnxruntime-web"
    web_page.needed(
        str(modules) if modules.is_dir() else None,
        f"there are no Node modules; npm ci --ignore-scripts --prefix {HOST}",
    )
    return page_site()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three classes and one kilobyte, to be looked at only."""
    import tiny_bundle

    return tiny_bundle.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def address(page_files: web_page.Site, tiny: Path) -> Iterator[str]:
    """Where the page is, with digits and the tiny bundle."""
    from runtime.bundle import open_bundle
    from runtime.web_server import PageServer
    from runtime.web_site import models_site

    bundles = [open_bundle(each) for each in (web_page.MNIST, tiny)]
    with web_page.serving(PageServer(page_files | models_site(bundles), 0)) as server:
        yield server.url


@pytest.fixture
def open_page(browser: Any) -> Iterator[web_page.Open]:
    """Opens a page in a browser that has never seen it; in the end none may have errors but those that were taken."""
    opened: list[web_page.Opened] = []

    def open_one(
        url: str, like: web_page.Opened | None = None, within: Any = browser, **options: Any
    ) -> web_page.Opened:
        context = like.page.context if like else within.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(web_page.PATIENCE)
        own = web_page.Opened(page, [])
        page.on("console", lambda message: own.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: own.errors.append(str(error)))
        opened.append(own)
        page.goto(url)
        return own

    yield open_one
    for each in opened:
        each.page.context.close()
    assert [error for each in opened for error in each.errors] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here; it takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@cache
def missing_for_cuda() -> str | None:
    """Why tests marked ``cuda`` cannot run here, or None.

    Only what is absent counts. A GPU and a wheel for it that do not work together are for the tests to find.
    """
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        listed = False
    if not listed:
        return "needs an NVIDIA GPU, and nvidia-smi -L lists none"
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "needs ONNX Runtime for CUDA, which `make test-cuda` installs"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left alone with a long one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda"):
        reason = missing_for_cuda()
        if reason:
            pytest.skip(reason)
