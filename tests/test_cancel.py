"""Proves that a call stops inside an evaluation, by a token, after a time and by Ctrl-C, wherever it is; that no other
call notices; and that the pipeline draws afterwards what it drew before."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text_bundle
from onnx import helper
from tiny_text_bundle import CHANNELS, INPUTS, OUTPUTS

from runtime import Cancelled, CancelToken, Result, TimedOut, load
from runtime.__main__ import main
from runtime.cancel import check_cancelled, in_force, interruptible, stoppable
from runtime.draw_list import draw_list
from runtime.errors import DiffusionError, RequestError
from runtime.prompt_list import read_prompt_list
from runtime.session import Session
from runtime.text_to_image import TextToImage

ROOT = Path(__file__).parents[1]
CONVOLUTIONS = 2000  # one takes about a millisecond in a large picture, and next to nothing in a small one
LARGE = 512
WORK = 0.5  # seconds of the processor's time, on whatever machine, however busy, from the wish to stop to the end


def heavy_unet() -> bytes:
    """The U-Net of the tiny bundle, whose scaled sample goes through many convolutions that change nothing."""
    nodes, constants = tiny_text_bundle.nodes()["unet"]
    identity = np.zeros((CHANNELS, CHANNELS, 3, 3), np.float32)
    identity[range(CHANNELS), range(CHANNELS), 1, 1] = 1
    names = ["scaled", *(f"scaled_{i}" for i in range(CONVOLUTIONS))]
    chain = [
        helper.make_node("Conv", [before, "identity"], [after], pads=[1, 1, 1, 1])
        for before, after in itertools.pairwise(names)
    ]
    *others, last = nodes
    last = helper.make_node("Add", [names[-1], "shift"], ["out_sample"])
    return tiny_text_bundle.model(
        [*others, *chain, last], INPUTS["unet"], OUTPUTS["unet"], constants | {"identity": identity}
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_text_bundle.write(tmp_path_factory.mktemp("models"))
    data = heavy_unet()
    (folder / "unet.onnx").write_bytes(data)
    described = tiny_text_bundle.described("unet.onnx", data)
    return tiny_text_bundle.changed(folder, folder.parent, lambda m: m["graphs"]["unet"]["fp32"].update(described))


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> TextToImage:
    made = load(bundle, provider="cpu", ignore_memory=True)
    assert isinstance(made, TextToImage)
    return made


def small(pipeline: TextToImage, **settings: Any) -> Result:
    return pipeline("a red circle", seed=3, num_inference_steps=2, **settings)


def large(pipeline: TextToImage, **settings: Any) -> Result:
    return small(pipeline, width=LARGE, height=LARGE, **settings)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the U-Net has been asked."""
    event, run = threading.Event(), Session.run

    def watched(self: Session, **inputs: Any) -> Any:
        if "timestep" in inputs:
            event.set()
        return run(self, **inputs)

    monkeypatch.setattr(Session, "run", watched)
    return event


# --- stopping -------------------------------------------------------------------------------------------------------


def test_a_token_stops_an_evaluation_and_the_pipeline_draws_again(
    pipeline: TextToImage, running: threading.Event
) -> None:
    before, rows = small(pipeline), []
    running.clear()
    token = CancelToken()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(large, pipeline, cancel=token, progress=lambda done, total: rows.append(done))
        assert running.wait(60)
        time.sleep(0.3)
        asked = time.process_time()
        token.cancel()
        with pytest.raises(Cancelled, match="it was cancelled before it was finished"):
            call.result()
        assert time.process_time() - asked < WORK
    assert rows == []  # of the first row
    assert small(pipeline).sample.tobytes() == before.sample.tobytes()


@pytest.mark.parametrize("stop", ["token", "timeout"])
def test_the_model_that_comes_along_stops_within_a_second(running: threading.Event, stop: str) -> None:
    """Inside the first evaluation, of a picture that is sixteen times as large as usual: alone it takes longer."""
    pocket, rows = load(ROOT / "models_onnx" / "pocket", provider="cpu", threads=1, ignore_memory=True), []
    pocket("a red sneaker", num_inference_steps=1)  # now its graphs are loaded
    running.clear()
    token, settings = CancelToken(), {"width": 256, "height": 256, "num_inference_steps": 50}
    limits = {"cancel": token} if stop == "token" else {"timeout": 0.5}
    asked = time.process_time()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(
            pocket, "a red sneaker", **settings, **limits, progress=lambda done, total: rows.append(done)
        )
        assert running.wait(60)
        if stop == "token":
            time.sleep(0.3)
            asked = time.process_time()
            token.cancel()
        with pytest.raises(Cancelled if stop == "token" else TimedOut):
            call.result(timeout=60)
    assert time.process_time() - asked < 1 + (stop == "timeout") * 0.5
    assert rows == []
    assert pocket("a red sneaker", num_inference_steps=1).images.shape == (1, 64, 64, 3)


def test_a_call_ends_with_its_time(pipeline: TextToImage) -> None:
    before, rows = small(pipeline), []
    with pytest.raises(TimedOut, match=r"it took longer than the timeout of 0\.5 s; allow more, or ask for less"):
        large(pipeline, timeout=0.5, progress=lambda done, total: rows.append(done))
    assert rows == []  # of the first row
    assert issubclass(TimedOut, TimeoutError)
    assert issubclass(TimedOut, DiffusionError)
    again = small(pipeline, timeout=600)
    assert again.sample.tobytes() == before.sample.tobytes()


def test_others_draw_on(pipeline: TextToImage) -> None:
    before, token = small(pipeline), CancelToken()
    with ThreadPoolExecutor(5) as pool:
        stopped = pool.submit(large, pipeline, cancel=token)
        others = [pool.submit(small, pipeline, cancel=CancelToken(), timeout=600) for _ in range(4)]
        time.sleep(0.1)
        token.cancel()
        assert all(each.result().sample.tobytes() == before.sample.tobytes() for each in others)
        with pytest.raises(Cancelled):
            stopped.result()
    assert in_force.get() == ()


@pytest.mark.parametrize("role", ["text_encoder", "unet", "vae_encoder", "vae_decoder"])
def test_every_network_is_stopped(pipeline: TextToImage, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    token, run, asked = CancelToken(), Session.run, []

    def cancelling(self: Session, **inputs: Any) -> Any:
        asked.append(self.graph.file.name.removesuffix(".onnx"))
        if asked[-1] == role:
            token.cancel()
        return run(self, **inputs)

    monkeypatch.setattr(Session, "run", cancelling)
    with pytest.raises(Cancelled):
        small(pipeline, cancel=token, image=np.zeros((8, 12), np.uint8))
    assert asked[-1] == role


def test_a_cancelled_token_lets_nothing_begin(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, token = load(bundle, provider="cpu"), CancelToken()
    token.cancel()
    token.cancel()  # as often as one likes
    assert token.cancelled
    with pytest.raises(Cancelled):
        fresh("a circle", cancel=token)
    assert fresh.networks._sessions == {}
    assert fresh("a circle", num_inference_steps=1).images.shape == (1, 8, 12, 3)


def test_who_waits_for_another_to_load_is_stopped(pipeline: TextToImage) -> None:
    with pipeline.networks._lock, ThreadPoolExecutor(1) as pool:
        call = pool.submit(small, pipeline, timeout=0.2)
        with pytest.raises(TimedOut):
            call.result(timeout=10)


def test_a_step_is_stopped_and_its_caller_is_not(pipeline: TextToImage) -> None:
    token = CancelToken()
    steps = pipeline.denoise("a circle", num_inference_steps=3, cancel=token)
    assert next(steps).row == 1
    token.cancel()
    check_cancelled()  # what stops the steps does not stop who looks at them
    with pytest.raises(Cancelled):
        next(steps)
    with pytest.raises(TimedOut):
        list(pipeline.denoise("a circle", width=LARGE, height=LARGE, timeout=0.5))
    check_cancelled()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"cancel": 5}, "cancel is 5; it must be a CancelToken"),
        ({"timeout": 0}, "timeout is 0; it must be a number of seconds above 0"),
        ({"timeout": -1.5}, "timeout is -1.5"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": 1e300}, "timeout is 1e+300"),
        ({"timeout": 10**400}, "timeout is 1"),
        ({"timeout": True}, "timeout is True"),
        ({"timeout": "5"}, "timeout is '5'"),
    ],
)
def test_what_stops_nothing_is_refused(pipeline: TextToImage, limits: dict[str, Any], message: str) -> None:
    for ask in (pipeline, pipeline.denoise):
        with pytest.raises(RequestError) as error:
            ask("a circle", **limits)
        assert str(error.value).startswith(message)


def test_of_two_limits_the_first_counts() -> None:
    outer, inner = CancelToken(), CancelToken()
    with stoppable(outer), stoppable(inner, timeout=600):
        check_cancelled()
        outer.cancel()
        with pytest.raises(Cancelled):
            check_cancelled()
    check_cancelled()


def test_errors_that_nobody_asked_for_remain(pipeline: TextToImage) -> None:
    with pytest.raises(RequestError, match="failed on"), stoppable(CancelToken(), timeout=600):
        pipeline.networks.session("vae_decoder").run(latent_sample=np.zeros((1, 9, 2, 2), np.float32))


def test_a_list_that_was_stopped_goes_on(pipeline: TextToImage, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a red circle\na green circle\na blue square\n")
    entries = read_prompt_list(tmp_path / "list.txt", "prompt")
    told, token = {"num_inference_steps": 2}, CancelToken()
    whole = draw_list(pipeline, entries, tmp_path / "whole", told, seed=5)

    def second_begins(done: int, _: int) -> None:
        if done == 3:
            token.cancel()

    with pytest.raises(Cancelled), stoppable(token):
        draw_list(pipeline, entries, tmp_path / "parts", told, 5, progress=second_begins)
    assert len(list((tmp_path / "parts").glob("*.png"))) == 1
    rest = draw_list(pipeline, entries, tmp_path / "parts", told)
    assert (rest.drawn, rest.kept, rest.failures) == (2, 1, ())
    assert whole.drawn == 3
    for picture in (tmp_path / "whole").glob("*.png"):
        assert (tmp_path / "parts" / picture.name).read_bytes() == picture.read_bytes()


# --- the command line -----------------------------------------------------------------------------------------------


def command(bundle: Path, folder: Path, *more: str) -> list[str]:
    size = f"{LARGE}x{LARGE}"
    words = ["--model", str(bundle), "a circle", "--size", size, "--ignore-memory", "--provider", "cpu"]
    return [*words, "-o", str(folder / "circle.png"), *more]


def test_a_command_gives_up(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(bundle, tmp_path, "--timeout", "1")) == 2
    assert capsys.readouterr().err == "error: it took longer than the timeout of 1 s; allow more, or ask for less\n"
    assert main(command(bundle, tmp_path, "--timeout", "0")) == 2
    assert "timeout is 0.0; it must be a number of seconds above 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_stops_an_evaluation(bundle: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "runtime", *command(bundle, tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("provider cpu")
    time.sleep(5)  # into the first evaluation
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "\ninterrupted; no file is half-written\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_reaches_what_runs(pipeline: TextToImage, running: threading.Event) -> None:
    """In this very process, whose main thread waits inside ONNX Runtime and cannot run a handler of Python's."""
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)

    def interrupt() -> None:
        running.wait(60)
        time.sleep(0.3)
        times.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    times: list[float] = []
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), interruptible():
        large(pipeline)
    ended = time.process_time()
    thread.join()
    assert ended - times[0] < WORK
    after = signal.set_wakeup_fd(before)
    assert after == before
    assert in_force.get() == ()


def test_elsewhere_than_in_the_main_thread_no_signal_is_watched() -> None:
    def inside() -> Callable[[], None] | None:
        with interruptible():
            return None if in_force.get() == () else check_cancelled

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() is None
