"""Proves the benchmark: programs are real processes, each gets its turn, ratios are taken within a round, peers compute
what the runtime computes, and a program that fails in any way is one clear line."""

from __future__ import annotations

import json
import math
import os
import re
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
from runtime.benchmark import scaling
from runtime.benchmark.figures import Figures
from runtime.benchmark.lives import Case, Row, Shapes, measure, summary
from runtime.benchmark.program import Program
from runtime.benchmark.protocol import decode_inputs, image_input, probe, step_inputs, token_ids
from runtime.errors import EngineError

ROOT = Path(__file__).parent.parent
OPENVINO = ROOT / ".venv" / "openvino" / "bin" / "python"  # where `make bench` has made it
SHAPES = Shapes(channels=4, factor=2, scaling_factor=0.5, tokens=77, embedding_dim=8, vocab_size=11)
CASES = [Case("unet", 1, 6, 4), Case("vae_decoder", 1, 6, 4)]

# A program in plain Python: argv[1] is how long an order takes, argv[2] what to multiply its probe with; it notes each
# start in the file argv[3] and after argv[4] orders does argv[5]. Its time grows with the batch and, squared, with the
# number of latents; two threads are three times as fast as one.
FAKE = """
import json, os, sys, time
seconds, factor, log, orders, end = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
open(log, "a").write(f"{seconds}\\n")
print(json.dumps({"ready": f"fake {seconds}"}), flush=True)
threads = None
for number, line in enumerate(sys.stdin):
    if number == orders:
        exec(end)
    order = json.loads(line)
    threads = order.get("threads", threads)
    batch, _, height, width = order.get("latents", [1, 0, 2, 3])
    work = batch * (height * width / 6) ** 2 / (3 if threads == 2 else 1)
    answer = {"seconds": seconds * work * (10 if order["op"] == "decode" else 1), "peak_bytes": 1000 * (number + 1)}
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


def measured(
    commands: dict[str, list[str]], rounds: int, cases: list[Case] = CASES, warm: int = 2
) -> tuple[list[Row], list[str]]:
    figures = Figures({})
    measure(commands, cases, SHAPES, warm, rounds, 60, figures)
    return summary(figures)


def test_every_program_lives_once_for_each_case_and_begins_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {"runtime": fake(tmp_path, 2), "slow": fake(tmp_path, 3), "fast": fake(tmp_path, 1)}
    rows, failures = measured(commands, rounds=2)
    assert failures == []
    begun = ["2.0", "3.0", "1.0"]
    turns = [begun[k:] + begun[:k] for k in (0, 1, 1, 2)]
    assert (tmp_path / "log").read_text().split() == [each for turn in turns for each in turn]
    assert [(row.case, row.program) for row in rows] == [(case, name) for case in CASES for name in commands]
    assert [row.time_ratios for row in rows] == [[1.0] * 2, [1.5] * 2, [0.5] * 2] * 2
    assert [row.seconds for row in rows] == [2, 3, 1, 20, 30, 10]
    # Loading and three runs; the fake's memory grows by 1,000 bytes an order.
    assert {row.peak_bytes for row in rows} == {4000}
    assert all(row.memory_ratios == [1.0, 1.0] for row in rows)
    assert all(row.load_seconds > row.first_seconds / 10 > 0 and row.difference == 0 for row in rows)
    assert "round 2 of 2, vae_decoder 6x4: slow loaded in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("orders", "end", "message"),
    [
        (0, "os._exit(3)", "ended with status 3"),
        (2, "raise ValueError('no such layer')", "ended with status 1: ValueError: no such layer"),
        (3, "os.kill(os.getpid(), 9)", "was killed by signal 9, as happens when there is no memory left"),
        (1, "print('loading', flush=True)", "said 'loading', which is not what docs/benchmark.md asks for"),
        (1, "print('[]', flush=True)", "said '[]', which is not"),
        (1, "sys.stdout.buffer.write(bytes([0xFF, 10])); sys.stdout.flush()", "said '\ufffd', which is not"),
        (1, 'print(\'{"seconds": "x"}\', flush=True)', "which is not what docs/benchmark.md asks for"),
        (1, "seconds = 0", "which is not what docs/benchmark.md asks for"),
        (1, "factor = float('nan')", "computed numbers that are not finite"),
    ],
)
def test_a_peer_that_fails_is_one_line_and_the_others_go_on(
    tmp_path: Path, orders: int, end: str, message: str
) -> None:
    commands = {"runtime": fake(tmp_path, 2), "bad": fake(tmp_path, 1, 1, orders, end), "good": fake(tmp_path, 4)}
    rows, failures = measured(commands, rounds=2, cases=CASES[:1])
    assert [(row.program, row.time_ratios) for row in rows] == [("runtime", [1.0, 1.0]), ("good", [2.0, 2.0])]
    assert len(failures) == 1
    assert failures[0].startswith("bad (")
    assert message in failures[0]
    assert "\n" not in failures[0]
    assert (tmp_path / "log").read_text().split().count("1.0") == 1  # it does not get a second chance


def test_what_fails_with_one_case_keeps_the_others(tmp_path: Path) -> None:
    """As an OpenVINO that has no memory for the largest batch."""
    commands = {"runtime": fake(tmp_path, 2), "peer": fake(tmp_path, 1, 1, 0, "assert 'vae' not in line, 'too large'")}
    rows, failures = measured(commands, rounds=2)
    assert [(row.case.graph, row.program) for row in rows] == [
        *(("unet", "runtime"), ("unet", "peer")),
        ("vae_decoder", "runtime"),
    ]
    assert len(failures) == 1
    assert failures[0].endswith("AssertionError: too large, with vae_decoder 6x4")


def test_what_cannot_start_is_said_once(tmp_path: Path) -> None:
    rows, failures = measured({"runtime": fake(tmp_path, 2), "peer": ["false"]}, rounds=2)
    assert [row.program for row in rows] == ["runtime"] * 2
    assert failures == ["peer (false) ended with status 1"]


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
        measured(commands, rounds=1)


def test_a_program_that_computes_something_else_gets_no_figures(tmp_path: Path) -> None:
    commands = {"runtime": fake(tmp_path, 2), "near": fake(tmp_path, 2, 1.01), "other": fake(tmp_path, 2, 1.5)}
    rows, failures = measured(commands, rounds=1, cases=CASES[:1])
    assert [row.program for row in rows] == ["runtime", "near"]
    assert rows[1].difference == pytest.approx(0.01)
    assert failures == [
        "other computes something else with unet 6x4: its output differs by 0.5 of the runtime's; at most 0.2 is "
        "rounding"
    ]


def test_growth_is_fitted_round_by_round(tmp_path: Path) -> None:
    """The fake's times are known: batch · latents² / threads' share."""
    cases = scaling.cases(["unet", "vae_decoder"], [1, 2, 8], [(6, 4), (12, 4), (12, 8)], [1, 2])
    assert Case("unet", 8, 12, 4) in cases
    assert not any(case.graph == "vae_decoder" and case.images > 1 for case in cases)
    assert len(cases) == len(set(cases)) == 3 + 2 + 2 + 3 + 2
    figures = Figures({})
    measure({"runtime": fake(tmp_path, 2)}, cases, SHAPES, 1, 2, 60, figures)
    rows, _ = summary(figures)
    unet, decoder = scaling.growths(figures, rows)
    assert unet.batch_exponents == pytest.approx([1, 1])
    for growth in (unet, decoder):
        assert growth.latents_exponents == pytest.approx([2, 2])
        assert growth.speed_ups == pytest.approx([3, 3])
    assert decoder.batch_exponents == []
    printed = scaling.in_markdown(rows, [unet, decoder])
    assert "| unet | runtime | 1.00 (1.00 to 1.00) | 2.00 (2.00 to 2.00) | 2 are 3.00" in printed
    assert "| vae_decoder | runtime | – | 2.00" in printed


def test_sizes_of_scaling_are_those_of_the_issue() -> None:
    assert scaling.default_sizes(512, 512, 8) == [(side, side) for side in (256, 384, 512, 640, 768)]


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
    ids = token_ids([2, 77], 11, 5)
    assert (ids == np.random.RandomState(5).randint(0, 11, (2, 77))).all()
    assert ids.dtype == np.int64
    assert (image_input([1, 3, 4, 6], 5) == np.random.RandomState(5).uniform(-1, 1, (1, 3, 4, 6)).astype("f4")).all()
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
        (["--scaling"], "--scaling does not go with"),
        (["--pictures"], "--pictures does not go with"),
        (["--resume"], "--resume goes on where a file ends; say which by --json"),
        (["--resume", "--json", "x.json"], "--resume does not go with class-conditional bundles"),
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


def test_each_network(text_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = module("runtime", "benchmark", "--worker", text_model)
    options = ["--size", "6x4", "--rounds", "1", "--warm", "3", "--peer", f"again={again}"]
    assert main(["benchmark", text_model, *options, "--json", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr()
    assert "| unet | again | " in printed.out
    assert printed.err.count("\n") == 8  # a line of progress for each network and program
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["version"], figures["kind"], figures["rounds_done"]) == (2, "graphs", 1)
    assert figures["machine"]["processors"] >= 1
    assert figures["programs"]["again"] == shlex.split(again)
    graphs = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert [row["case"]["graph"] for row in figures["rows"]][::2] == graphs
    assert {row["difference"] for row in figures["rows"]} == {0}
    assert all(row["peak_bytes"] > 1e7 for row in figures["rows"])
    lives = {record["case"]["graph"]: record for record in figures["records"] if record["program"] == "again"}
    probes = {graph: life["answers"][0]["probe"] for graph, life in lives.items()}
    assert {len(life["answers"]) for life in lives.values()} == {4}
    # What the runtime was asked for is what the closed forms give.
    tokens = tiny_text_bundle.MAX_LENGTH
    states = tiny_text_bundle.TABLE[token_ids([1, tokens], tiny_text_bundle.VOCAB_SIZE, 0)]
    np.testing.assert_allclose(probes["text_encoder"], probe(states), rtol=1e-6)
    sample, uncond, cond = step_inputs([1, 4, 2, 3], [1, tokens, tiny_text_bundle.DIM], 0)
    expected = sample * np.float32(500 / 501) + uncond.mean() / 10 + 7.5 * (cond.mean() - uncond.mean()) / 10
    np.testing.assert_allclose(probes["unet"], expected.ravel(), rtol=1e-4, atol=1e-4)
    pixels = decode_inputs([1, 4, 2, 3], 0)[0, :3].repeat(2, axis=1).repeat(2, axis=2) / tiny_text_bundle.SCALING_FACTOR
    np.testing.assert_allclose(probes["vae_decoder"], probe(pixels), rtol=1e-5)
    means = image_input([1, 3, 4, 6], 0)[0].reshape(3, 2, 2, 3, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(probes["vae_encoder"], probe(np.concatenate([means, np.zeros((1, 2, 3))])), atol=1e-6)


def test_scaling_prints_what_grows(text_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--batch-sizes", "1,2", "--sizes", "6x4", "--threads", "1,2", "--graphs", "unet", "--rounds", "1"]
    assert main(["benchmark", text_model, "--scaling", *options]) == 0
    printed = capsys.readouterr()
    assert "| unet | 2 | 6x4 | – | runtime | " in printed.out
    assert "| unet | 1 | 6x4 | 2 | runtime | " in printed.out
    assert "times as fast as 1 |" in printed.out
    assert "unet 6x4 by 1 thread: runtime loaded in" in printed.err


@pytest.fixture
def interrupted(
    text_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:  # capsys, so that the test can read what is printed here
    """The words of a command that was interrupted, by Ctrl-C, in its second round of three."""
    log = tmp_path / "log"
    ends = f"len(open({str(log)!r}).read().split()) == 4 and (os.kill(os.getppid(), {signal.SIGINT:d}), time.sleep(60))"
    peer = shlex.join(fake(tmp_path, 2, 1, 1, ends))
    words = ["benchmark", text_model, "--rounds", "3", "--graphs", "unet,vae_encoder", "--peer", f"peer={peer}"]
    words += ["--json", str(tmp_path / "f.json")]
    # The fake computes nothing that a network would.
    monkeypatch.setattr("runtime.benchmark.lives.LARGEST_DIFFERENCE", math.inf)
    assert main(words) == 130
    return words


def test_an_interruption_costs_a_round_at_most(
    interrupted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = capsys.readouterr()
    assert "of the 1 whole rounds" in printed.err
    assert f"--json {tmp_path / 'f.json'} --resume goes on after round 1" in printed.err
    assert "| unet | peer | " in printed.out
    before = json.loads((tmp_path / "f.json").read_text())
    assert before["rounds_done"] == 1
    assert len(before["rows"]) == 4
    assert main([*interrupted, "--resume"]) == 0
    after = json.loads((tmp_path / "f.json").read_text())
    assert after["rounds_done"] == 3
    assert after["records"][:4] == before["records"][:4]
    assert [record["round"] for record in after["records"]] == [0] * 4 + [1] * 4 + [2] * 4
    assert "round 1 of" not in capsys.readouterr().err


def test_what_cannot_be_resumed_is_one_line(
    interrupted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    capsys.readouterr()
    path = tmp_path / "f.json"
    good = json.loads(path.read_text())
    assert "is of a run with another work; repeat its command" in refusal(main, *interrupted, "--warm", "2", "--resume")
    for change, message in (
        ('{"records": []', "holds no figures of a benchmark (Expecting"),
        ("[]", "holds no figures of a benchmark (it has no records)"),
        (json.dumps(good | {"records": [7]}), "its records have no rounds"),
        (json.dumps(good | {"failures": [{}]}), "its failures name no programs"),
        (json.dumps(good | {"version": 3}), "is of a run with another version"),
        (json.dumps(good | {"records": [{"round": 0}]}), "a record of the figures is no life of a program"),
        (json.dumps(good | {"records": good["records"][1:]}), "do not fit together (KeyError); leave out --resume"),
        ("[" * 100_000, "holds no figures of a benchmark"),
    ):
        path.write_text(change)
        assert message in refusal(main, *interrupted, "--resume")


def test_a_failed_peer_costs_the_status_and_not_the_figures(
    text_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rounds", "1", "--warm", "1", "--graphs", "unet", "--peer", "x=false"]
    assert main(["benchmark", text_model, *options]) == 2
    printed = capsys.readouterr()
    assert "| unet | runtime | " in printed.out
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
        (["--graphs", "unet,controlnet"], "graph 'controlnet' is unknown; tiny-text has text_encoder, unet"),
        (["--threads", "2"], "--threads does not go with"),
        (["--prompt", "a"], "--prompt does not go with"),
        (["--scaling", "--size", "6x4"], "--size does not go with"),
        (["--scaling", "--sizes", "6x4,6x5"], "size '6x5' must be two multiples of 2"),
        (["--scaling", "--threads", "9999"], "threads '9999' must be at most 1024"),
        (["--scaling", "--batch-sizes", "0"], "batch sizes '0' must be whole numbers"),
        (["--pictures", "--steps", "x"], "steps 'x' must be whole numbers"),
        (["--pictures", "--seed", "-1"], "seed is -1; it must be a whole number"),
        (["--pictures", "--prompt=-x"], "prompt '-x' must not begin with -"),
        (["--pictures", "--warm", "1"], "--warm does not go with"),
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
    if OPENVINO.exists():
        peers["OpenVINO"] = shlex.join([str(OPENVINO), "-m", "peers.openvino", str(plain)])
    options = ["--size", "24x16", "--rounds", "1", "--warm", "1", "--json", str(tmp_path / "figures.json")]
    for name, command in peers.items():
        options += ["--peer", f"{name}={command}"]
    assert main(["benchmark", str(text_samples.sample_bundle()), *options]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    rows = {(row["case"]["graph"], row["program"]): row for row in figures["rows"]}
    graphs = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
    assert list(rows) == [(graph, program) for graph in graphs for program in ("runtime", *peers)]
    for (graph, program), row in rows.items():
        low, high = (1e-4, 0.1) if program == "bf16" else (0, 1e-5)
        assert low <= row["difference"] < high, (graph, program)
    assert "bf16" in rows["unet", "bf16"]["ready"]
    chart = tmp_path / "chart.svg"
    subprocess.run([sys.executable, "-m", "peers.chart", str(tmp_path / "figures.json"), str(chart)], check=True)
    assert {"vae_encoder", "plain", "bf16", "peak memory ÷ runtime's"} <= set(
        re.findall(">([^<>]+)</text>", chart.read_text())
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["peers.plain_onnx", "docs"], "docs holds no unet/model.onnx"),
        (["peers.plain_export", "docs", "out"], "docs holds no unet/config.json"),
        (["peers.ddpm_torch", "docs"], "docs is not a bundle"),
        (["peers.openvino", "docs"], "docs holds no unet/model.onnx"),
        (["peers.stable_diffusion_cpp", "docs"], "draws whole pictures only; measure it with --pictures"),
        (["peers.stable_diffusion_cpp", "docs", "a cat"], "docs is no file"),
        (["peers.chart", "docs/none.json", "x.svg"], "docs/none.json holds no figures of a benchmark"),
    ],
)
def test_bad_folders_of_peers(words: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
