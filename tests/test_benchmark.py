"""Proves the benchmark: programs are real processes, each gets its turn, ratios are taken within a round, peers compute
what the runtime computes, and a program that fails in any way is one clear line."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import checkpoint_files
import numpy as np
import pytest
import random_weights
import text_samples
import tiny_bundle
import tiny_text_bundle

from runtime.__main__ import main
from runtime.benchmark.networks import Work, measure, summary
from runtime.benchmark.program import Program
from runtime.benchmark.protocol import decode_inputs, probe, step_inputs
from runtime.errors import EngineError

ROOT = Path(__file__).parent.parent
WORK = Work(latents=(1, 4, 2, 3), text=(1, 77, 8), scaling_factor=0.5, warm=2)

# A program in plain Python: argv[1] is how long an order takes, argv[2] what to multiply its probe with; it notes each
# start in the file argv[3] and after argv[4] orders does argv[5].
FAKE = """
import json, os, sys, time
seconds, factor, log, orders, end = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
open(log, "a").write(f"{seconds}\\n")
print(json.dumps({"ready": f"fake {seconds}"}), flush=True)
for number, line in enumerate(sys.stdin):
    if number == orders:
        exec(end)
    order = json.loads(line)
    answer = {"seconds": seconds * (10 if order["op"] == "decode" else 1), "peak_bytes": 1000 * (number + 1)}
    print(json.dumps(answer | {"probe": [factor * 3.0, factor * -4.0]}), flush=True)
"""


@pytest.fixture(autouse=True)
def find_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are started as modules, from wherever the test is."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def text_model(tmp_path: Path) -> str:
    """A tiny text bundle: latents of 4 channels, half as high and wide as the image."""
    return str(tiny_text_bundle.write(tmp_path / "models"))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny class-conditional bundle, in an empty folder that is the current one."""
    tiny_bundle.write(tmp_path / "models")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return str(tmp_path / "models" / "tiny")


def fake(tmp_path: Path, seconds: float, factor: float = 1, orders: int = -1, end: str = "pass") -> list[str]:
    return [sys.executable, "-c", FAKE, str(seconds), str(factor), str(tmp_path / "log"), str(orders), end]


def test_every_program_lives_once_a_round_and_begins_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {"runtime": fake(tmp_path, 2), "slow": fake(tmp_path, 3), "fast": fake(tmp_path, 1)}
    rows, failures = summary(measure(commands, WORK, rounds=3, limit_seconds=60))
    assert failures == []
    assert (tmp_path / "log").read_text().split() == ["2.0", "3.0", "1.0", "3.0", "1.0", "2.0", "1.0", "2.0", "3.0"]
    assert [row.step_ratios for row in rows] == [[1.0] * 3, [1.5] * 3, [0.5] * 3]
    assert [row.decode_ratios for row in rows] == [[1.0] * 3, [1.5] * 3, [0.5] * 3]
    assert [(row.step_seconds, row.decode_seconds) for row in rows] == [(2, 20), (3, 30), (1, 10)]
    # Three steps and two decodes; the fake's memory grows by 1,000 bytes an order.
    assert {(row.step_peak_bytes, row.peak_bytes) for row in rows} == {(3000, 5000)}
    assert all(row.load_seconds > 0 and row.difference == 0 for row in rows)
    assert "round 3 of 3: slow loaded in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("orders", "end", "message"),
    [
        (0, "os._exit(3)", "ended with status 3"),
        (2, "raise ValueError('no such layer')", "ended with status 1: ValueError: no such layer"),
        (4, "os.kill(os.getpid(), 9)", "was killed by signal 9, as happens when there is no memory left"),
        (1, "print('loading', flush=True)", "said 'loading', which is not what docs/benchmark.md asks for"),
        (1, "print('[]', flush=True)", "said '[]', which is not"),
        (1, "sys.stdout.buffer.write(bytes([0xFF, 10])); sys.stdout.flush()", "said '\ufffd', which is not"),
        (1, 'print(\'{"seconds": "x"}\', flush=True)', "which is not what docs/benchmark.md asks for"),
    ],
)
def test_a_peer_that_fails_is_one_line_and_the_others_go_on(
    tmp_path: Path, orders: int, end: str, message: str
) -> None:
    commands = {"runtime": fake(tmp_path, 2), "bad": fake(tmp_path, 1, 1, orders, end), "good": fake(tmp_path, 4)}
    rows, failures = summary(measure(commands, WORK, rounds=2, limit_seconds=60))
    assert [(row.program, row.step_ratios) for row in rows] == [("runtime", [1.0, 1.0]), ("good", [2.0, 2.0])]
    assert len(failures) == 1
    assert failures[0].startswith("bad (")
    assert message in failures[0]
    assert "\n" not in failures[0]
    assert (tmp_path / "log").read_text().split().count("1.0") == 1  # it does not get a second chance


@pytest.mark.slow
def test_a_peer_that_hangs_is_ended(tmp_path: Path) -> None:
    with Program("sleeper", fake(tmp_path, 1, 1, 1, "time.sleep(60)"), limit_seconds=5) as program:
        program.order(op="step")
        with pytest.raises(EngineError, match="took longer than 5 s and was ended; --limit allows more"):
            program.order(op="step")


def test_ctrl_c_ends_the_program_and_the_watch(tmp_path: Path) -> None:
    """While an answer is waited for; nothing is left that would keep this process from ending."""
    before = threading.active_count()
    with Program("sleeper", fake(tmp_path, 1, 1, 0, "time.sleep(60)"), limit_seconds=60) as program:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            program.order(op="step")
    assert program.process.returncode is not None
    deadline = time.monotonic() + 10  # a cancelled timer takes a moment to end, on a busy machine a longer one
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_the_runtime_itself_may_not_fail(tmp_path: Path) -> None:
    commands = {"runtime": fake(tmp_path, 2, 1, 1, "os._exit(3)"), "good": fake(tmp_path, 4)}
    with pytest.raises(EngineError, match="ended with status 3"):
        measure(commands, WORK, rounds=1, limit_seconds=60)


def test_a_program_that_computes_something_else_gets_no_figures(tmp_path: Path) -> None:
    commands = {"runtime": fake(tmp_path, 2), "near": fake(tmp_path, 2, 1.01), "other": fake(tmp_path, 2, 1.5)}
    rows, failures = summary(measure(commands, WORK, rounds=1, limit_seconds=60))
    assert [row.program for row in rows] == ["runtime", "near"]
    assert rows[1].difference == pytest.approx(0.01)
    assert failures == [
        "other computes something else: its output differs by 0.5 of the runtime's; at most 0.2 is rounding"
    ]


def test_nothing_is_left_running(tmp_path: Path) -> None:
    with Program("fake", fake(tmp_path, 1), limit_seconds=60) as program:
        os.kill(program.process.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(program.process.pid, 0)


def test_inputs_and_probe_are_what_the_page_says() -> None:
    random = np.random.RandomState(5)
    shapes = [(2, 4, 3, 5), (2, 77, 8), (2, 77, 8)]
    for tensor, shape in zip(step_inputs(shapes[0], shapes[1], 5), shapes, strict=True):
        assert tensor.dtype == np.float32
        assert (tensor == random.standard_normal(shape).astype(np.float32)).all()
    assert decode_inputs([1, 4, 2, 2], 0)[0, 0, 0, 0] == np.float32(1.764052345967664)
    assert probe(np.arange(640, dtype=np.float32))[:3] == [0.0, 10.0, 20.0]
    assert len(probe(np.arange(640, dtype=np.float32))) == 64
    assert probe(np.arange(3, dtype=np.float32)) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer", "x=no-such-program-anywhere"], "x (no-such-program-anywhere) cannot be started: No such file"),
        (["--peer", "x=a\x00b"], r"x ('a\x00b') cannot be started: embedded null byte"),
        (["--peer", "x=false"], "x (false) ended with status 1"),
        (["--peer", "x=echo hello"], "x (echo hello) said 'hello', which is not what docs/benchmark.md asks for"),
        (["--peer", "nothing"], "peer 'nothing' must be NAME=COMMAND"),
        (["--peer", "x= "], "peer 'x= ' must be NAME=COMMAND"),
        (["--peer", "x='"], 'peer "x=\'" cannot be read: no closing quotation'),
        (["--peer", "runtime=true"], "peer 'runtime=true' has the name of another program"),
        (["--json", "missing/x.json"], "the folder missing does not exist"),
        (["--batch-sizes", "1,none"], "batch sizes '1,none' must be whole numbers"),
        (["--steps", "5,0"], "steps '5,0' must be whole numbers of at least 1"),
        (["--rounds", "0"], "rounds is 0"),
        (["--limit", "-1"], "limit is -1"),
        (["--limit", "nan"], "limit is nan"),
        (["--limit", "1e12"], "limit is 1000000000000.0; it must be more than 0 seconds and at most"),
        (["--size", "512x512"], "--size does not go with"),
        (["--warm", "1"], "--warm does not go with"),
    ],
)
def test_bad_requests(model: str, refusal: Callable[..., str], arguments: list[str], message: str) -> None:
    assert message in refusal(main, "benchmark", model, "--batch-sizes", "1", "--steps", "1", *arguments)


def test_not_a_bundle(refusal: Callable[..., str]) -> None:
    assert "docs is not a bundle: it holds no manifest.json" in refusal(main, "benchmark", ROOT / "docs")


def test_images_per_second(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    worker = f"{sys.executable} -m runtime benchmark --worker {model}"
    options = ["--batch-sizes", "2", "--steps", "3,5", "--rounds", "2", "--peer", f"again={worker}"]
    assert main(["benchmark", model, *options, "--json", "b.json"]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(Path("b.json").read_text())
    named = [(row["steps"], row["program"]) for row in figures["rows"]]
    assert named == [(3, "runtime"), (3, "again"), (5, "runtime"), (5, "again")]
    for row in figures["rows"]:
        cells = f"| 2 | {row['steps']} | {row['program']} | {row['seconds']:.3f} | {row['seconds'] / 2:.4f} |"
        assert cells in printed
    assert all(len(row["ratios"]) == 2 and row["peak_megabytes"] > 10 for row in figures["rows"])
    assert figures["rows"][0]["ready"].startswith("onnxruntime")


def module(*words: str) -> str:
    """The command of a program that is a module."""
    return shlex.join([sys.executable, "-m", *words])


def test_a_step_and_a_decode(text_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = module("runtime", "benchmark", "--worker", text_model)
    options = ["--size", "6x4", "--rounds", "1", "--warm", "3", "--peer", f"again={again}"]
    assert main(["benchmark", text_model, *options, "--json", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr()
    assert "| again | " in printed.out
    assert "6x4, one guided step" in printed.out
    assert printed.err.count("\n") == 2  # a line of progress for each
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["work"]["latents"] == [1, 4, 2, 3]
    assert figures["work"]["text"] == [1, tiny_text_bundle.MAX_LENGTH, tiny_text_bundle.DIM]
    ours, theirs = figures["rows"]
    assert ours["difference"] == theirs["difference"] == 0
    assert ours["peak_bytes"] > 1e7
    (life,) = figures["rounds"]["again"]
    assert (len(life["steps"]), len(life["decodes"])) == (4, 2)
    # What the runtime was asked for is what the closed form gives.
    sample, uncond, cond = step_inputs([1, 4, 2, 3], figures["work"]["text"], 0)
    expected = sample * np.float32(500 / 501) + uncond.mean() / 10 + 7.5 * (cond.mean() - uncond.mean()) / 10
    np.testing.assert_allclose(life["steps"][0]["probe"], expected.ravel(), rtol=1e-4, atol=1e-4)
    pixels = decode_inputs([1, 4, 2, 3], 0)[0, :3].repeat(2, axis=1).repeat(2, axis=2) / tiny_text_bundle.SCALING_FACTOR
    np.testing.assert_allclose(life["decodes"][0]["probe"], probe(pixels), rtol=1e-5)


def test_a_failed_peer_costs_the_status_and_not_the_figures(
    text_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", text_model, "--rounds", "1", "--warm", "1", "--peer", "x=false"]) == 2
    printed = capsys.readouterr()
    assert "| runtime | " in printed.out
    assert "| x | " not in printed.out
    assert printed.err.splitlines()[-1] == "error: x (false) ended with status 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "6x5"], "size '6x5' must be two multiples of 2 up to 16384, such as 12x8"),
        (["--size", "0x4"], "size '0x4' must be"),
        (["--size", "big"], "size 'big' must be"),
        (["--warm", "0"], "warm is 0; it must be at least 1"),
        (["--batch-sizes", "1"], "--batch-sizes does not go with"),
        (["--steps", "4"], "--steps does not go with"),
    ],
)
def test_bad_requests_of_text(
    text_model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["benchmark", text_model, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_peers_compute_what_the_runtime_computes(tmp_path: Path) -> None:
    """The same weights as a bundle, as a checkpoint's folder and as a plain export; a size no export has seen."""
    config = text_samples.CONFIG
    checkpoint = checkpoint_files.write_folder(tmp_path / "model", config, random_weights.random_state(config))
    plain = tmp_path / "plain"
    subprocess.run([sys.executable, "-m", "peers.plain_export", str(checkpoint), str(plain)], check=True)
    peers = {
        "plain": module("peers.plain_onnx", str(plain)),
        "fp32": module("peers.diffusers_torch", str(checkpoint)),
        "bf16": module("peers.diffusers_torch", str(checkpoint), "--dtype", "bf16"),
    }
    options = ["--size", "24x16", "--rounds", "1", "--warm", "1", "--json", str(tmp_path / "figures.json")]
    for name, command in peers.items():
        options += ["--peer", f"{name}={command}"]
    assert main(["benchmark", str(text_samples.sample_bundle()), *options]) == 0
    rows = {row["program"]: row for row in json.loads((tmp_path / "figures.json").read_text())["rows"]}
    assert list(rows) == ["runtime", *peers]
    assert rows["plain"]["difference"] < 1e-5
    assert rows["fp32"]["difference"] < 1e-5
    assert 1e-4 < rows["bf16"]["difference"] < 0.1
    assert "bf16" in rows["bf16"]["ready"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["peers.plain_onnx", "docs"], "docs holds no unet/model.onnx"),
        (["peers.plain_export", "docs", "out"], "docs holds no unet/config.json"),
        (["peers.ddpm_torch", "docs"], "docs is not a bundle"),
    ],
)
def test_bad_folders_of_peers(words: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
