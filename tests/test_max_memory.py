"""Proves that a limit on memory is kept by what is estimated and by what a process really takes, that what costs least
is given up first and nothing without need, that latents stay the same to the bit, and that what cannot be drawn within
the limit is refused before it begins."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_memory
import tiny_bundle
import tiny_text_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime import load
from runtime.__main__ import main
from runtime.bundle import Bundle, open_bundle
from runtime.cancel import Cancelled, CancelToken
from runtime.draw_list import draw_list
from runtime.errors import RequestError
from runtime.image import METADATA_KEY
from runtime.loading import make_pipeline
from runtime.memory import CPU_ONLY, FUSED, PORTABLE, SESSION, Demand, MemoryPlan, estimate
from runtime.memory_plan import parse_memory, plan_memory, tilings
from runtime.networks import Networks
from runtime.prompt_list import read_prompt_list
from runtime.session import Session
from runtime.vae import LEAST_TILE, quarters, spans

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "models_onnx" / "pocket"
MB, GB = 10**6, 10**9

bundle = test_memory.bundle  # of the sizes of Stable Diffusion 1.5


# --- what is asked for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        ("3GB", 3 * GB),
        ("3000MB", 3 * GB),
        ("3.5 gb", 3_500_000_000),
        (" 2GiB ", 2**31),
        ("0.5MiB", 2**19),
        ("1TB", 10**12),
        ("700kB", 700_000),
        ("4096B", 4096),
        (4096, 4096),
    ],
)
def test_figures(figure: str | int, expected: int) -> None:
    assert parse_memory(figure) == expected


NO_WORDS = (
    "",
    "3",
    "3G",
    "GB",
    "-3GB",
    "0GB",
    "0.1B",
    "3 G B",
    "1e3MB",
    "3GBs",
    "nanGB",
    "٣GB",
    "3GB\n4",
    "9" * 400 + "GB",
)


@pytest.mark.parametrize("figure", [*NO_WORDS, 0, -1, True, 3.5, None, b"3GB", ["3GB"]])
def test_what_is_no_amount_is_one_line(figure: object) -> None:
    with pytest.raises(
        RequestError, match=r"^max_memory is .*; it must be an amount of memory, such as 3GB, 3000MB or"
    ):
        parse_memory(figure)


def test_what_a_graphics_card_has_is_not_limited(tmp_path: Path) -> None:
    tiny = open_bundle(tiny_bundle.write(tmp_path))
    with pytest.raises(RequestError, match="max_memory is kept on the cpu alone, not on cuda"):
        Networks(tiny, "cuda", max_memory=GB)


# --- the plan -------------------------------------------------------------------------------------------------------

DEMANDS = st.builds(
    dict,
    width=st.integers(8, 128).map(lambda count: 8 * count),
    height=st.integers(8, 128).map(lambda count: 8 * count),
    images=st.integers(1, 5),
    guided=st.booleans(),
    encodes=st.booleans(),
    fused=st.booleans(),
)
BATCHES = st.integers(1, 9)
LIMITS = st.integers(1, 400).map(lambda count: count * 10**8)


def demand_of(bundle: Bundle, width: int, height: int, images: int, guided: bool, encodes: bool, fused: bool) -> Demand:
    roles = ["vae_encoder"] * encodes + list(test_memory.DRAWING)
    graphs = {role: bundle.graph(role, "fp32") for role in roles}
    if fused:
        graphs = {role: dataclasses.replace(graph, providers=CPU_ONLY) for role, graph in graphs.items()}
    return Demand(width, height, graphs, images, guided)


def given_up(memory: MemoryPlan) -> tuple[int, ...]:
    """By how much a plan restricts a request, one number for each way."""
    tile = memory.tiles.tile if memory.tiles else 10**6
    return int(memory.one_network), int(memory.in_turn), -memory.batch_size, -tile


@settings(deadline=None, max_examples=300)
@given(asked=DEMANDS, batch=BATCHES, limits=st.lists(LIMITS, min_size=2, max_size=4).map(sorted))
def test_a_plan_keeps_its_limit_and_more_memory_takes_no_more_away(
    bundle: Bundle, asked: dict[str, Any], batch: int, limits: list[int]
) -> None:
    demand, usual = demand_of(bundle, **asked), MemoryPlan(batch)
    plans = []
    for limit in limits:
        try:
            plans.append(plan_memory(bundle, demand, usual, limit))
        except RequestError:
            assert not plans  # what can be drawn in less can be drawn in more
            continue
        assert estimate(bundle, demand, plans[-1]).peak <= limit
    for tighter, looser in itertools.pairwise(plans):
        assert all(a >= b for a, b in zip(given_up(tighter), given_up(looser), strict=True))


@settings(deadline=None, max_examples=200)
@given(asked=DEMANDS, batch=BATCHES, limit=LIMITS)
def test_nothing_is_given_up_without_need(bundle: Bundle, asked: dict[str, Any], batch: int, limit: int) -> None:
    """Each thing taken back alone, the limit would be broken; and the guidance is never in turn where there is none."""
    demand = demand_of(bundle, **asked)
    try:
        memory = plan_memory(bundle, demand, MemoryPlan(batch), limit)
    except RequestError:
        return
    milder = [dataclasses.replace(memory, batch_size=memory.batch_size + 1)] if memory.batch_size < batch else []
    milder += [dataclasses.replace(memory, tiles=None)] if memory.tiles else []
    milder += [dataclasses.replace(memory, in_turn=False, batch_size=batch)] if memory.in_turn else []
    if memory.one_network:
        milder += [MemoryPlan(batch)]
    for each in milder:
        assert estimate(bundle, demand, each).peak > limit
    assert demand.guided or not memory.in_turn


def test_what_costs_least_is_given_up_first(bundle: Bundle) -> None:
    """As memory shrinks, for four pictures of 768 x 768 at once."""
    demand, plans = Demand(768, 768, {r: bundle.graph(r, "fp32") for r in test_memory.DRAWING}, 4), []
    for limit in range(60 * GB, 97 * GB // 10, -GB // 10):
        memory = plan_memory(bundle, demand, MemoryPlan(4), limit)
        if not plans or plans[-1] != memory:
            plans.append(memory)
    assert [str(each) for each in plans] == [
        "all networks held, 4 images at once",
        "one network at a time, 4 images at once",
        "one network at a time, the halves of guidance in turn, 4 images at once",
        "one network at a time, the halves of guidance in turn, 3 images at once",
        "one network at a time, the halves of guidance in turn, 2 images at once",
        "one network at a time, the halves of guidance in turn, 1 image at once",
    ]


def test_the_vae_is_tiled_where_it_is_the_tallest(bundle: Bundle) -> None:
    """As it is where the U-Net's attention is fused, and no U-Net runs where the picture stays as it is."""
    demand = Demand(1024, 1024, {"vae_decoder": bundle.graph("vae_decoder", "fp32")})
    sides = {plan_memory(bundle, demand, MemoryPlan(1), limit * GB // 10).tiles for limit in range(9, 100)}
    assert {each.tile if each else None for each in sides} == {None, 74, 52, 40, 32}


@pytest.mark.parametrize("side", [33, 40, 64, 65, 96, 128, 200, 513])
def test_tiles_are_as_small_as_their_number_allows(bundle: Bundle, side: int) -> None:
    demand = Demand(8 * side, 64, {"vae_decoder": bundle.graph("vae_decoder", "fp32")})
    whole, *tiled = tilings(bundle, demand, MemoryPlan(1))
    assert whole.tiles is None
    assert [len(spans(side, each.tiles)) for each in tiled] == list(range(2, len(tiled) + 2))
    assert tiled[-1].tiles == quarters(LEAST_TILE)


def test_low_memory_with_a_limit_gives_up_the_rest_only_where_it_must(bundle: Bundle) -> None:
    low = MemoryPlan(2, **test_memory.LOW)
    demand = test_memory.asked(bundle, 512, 512)
    assert plan_memory(bundle, demand, low, 20 * GB) == low
    assert plan_memory(bundle, demand, low, 5 * GB) == dataclasses.replace(low, batch_size=1)


@pytest.mark.parametrize(
    ("limit", "size", "images", "message"),
    [
        (
            45 * GB // 10,
            512,
            1,
            r"^max_memory 4\.5 GB is too little for 512x512: with one network at a time, the halves of guidance in turn"
            r", 1 image at once it needs at least 5\.0 GB \(.*unet 4\.\d GB.*\); a smaller width and height "
            r"\(--size\) need less$",
        ),
        (2 * GB, 512, 1, r"needs at least 5\.0 GB .*; the weights alone need 3\.6 GB, whatever the size$"),
        (5 * GB, 512, 10**5, r"images \d+\.\d GB\); fewer images at a time \(--count\) need less, or a list"),
    ],
)
def test_what_cannot_be_is_refused_with_the_least(
    bundle: Bundle, limit: int, size: int, images: int, message: str
) -> None:
    demand = Demand(size, size, {r: bundle.graph(r, "fp32") for r in test_memory.DRAWING}, images)
    with pytest.raises(RequestError, match=message) as error:
        plan_memory(bundle, demand, MemoryPlan(1), limit)
    least = re.search(r"at least (\d+\.\d) GB", str(error.value))
    assert least
    assert plan_memory(bundle, demand, MemoryPlan(1), int(float(least[1]) * GB)).one_network


def test_stored_halves_are_whole_where_they_run(bundle: Bundle) -> None:
    halved = dataclasses.replace(bundle, provenance={**bundle.provenance, "training": {"half_weights": True}})
    wide, half = (estimate(each, test_memory.asked(each, 512, 512), MemoryPlan(1)) for each in (bundle, halved))
    for one, other in zip(half.stages, wide.stages, strict=True):  # each rounded up to a whole byte
        assert one.held == pytest.approx(2 * other.held - SESSION, abs=1)


# --- drawing --------------------------------------------------------------------------------------------------------


def ways(bundle: Bundle, demand: Demand, batch: int, process: int) -> dict[MemoryPlan, int]:
    """Every plan that some limit leads to, with one such limit."""
    demand = dataclasses.replace(demand, process=process)
    found: dict[MemoryPlan, int] = {}
    limit = estimate(bundle, demand, MemoryPlan(batch)).peak
    while True:
        try:
            memory = plan_memory(bundle, demand, MemoryPlan(batch), limit)
        except RequestError:
            return found
        found.setdefault(memory, limit)
        limit = estimate(bundle, demand, memory).peak - 1


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("strength", [None, 0.6])
def test_latents_are_the_same_to_the_bit_whatever_is_given_up(
    tmp_path: Path, strength: float | None, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_text_bundle.write(tmp_path)
    tiny = open_bundle(folder)
    begun = {} if strength is None else {"image": np.full((140, 120, 3), 99, np.uint8), "strength": strength}
    request = {"width": 120, "height": 140, "seed": 5, "sampler": "dpmpp_2m_sde", "num_inference_steps": 3} | begun
    prompts = ["red", "a blue circle", "green"]
    expected = load(folder, "cpu")(prompts, batch_size=3, **request)
    if fused:  # as if: of the others the U-Net is by far the tallest, and no VAE is divided
        monkeypatch.setitem(PORTABLE, "unet", FUSED["unet"])
    roles = ["vae_encoder"] * (strength is not None) + list(test_memory.DRAWING)
    demand = test_memory.asked(tiny, 120, 140, roles, 3)
    found = ways(tiny, demand, 3, 0)
    assert {each.one_network for each in found} == {False, True}
    if fused:
        assert {each.tiles.tile if each.tiles else 0 for each in found} >= {0, LEAST_TILE, 40}
    else:
        assert {each.in_turn for each in found} == {False, True}
        assert {each.batch_size for each in found} == {1, 2, 3}
    for memory, limit in found.items():
        networks = Networks(tiny, max_memory=limit)
        networks.max_memory = limit + networks.process
        result = make_pipeline(tiny, networks, "")(prompts, batch_size=3, **request)
        assert networks.planned == memory
        tiled = memory.tiles is not None
        assert result.metadata.get("vae_tile") == (memory.tiles.tile if memory.tiles else None)
        if strength is None or not tiled:
            assert result.sample.tobytes() == expected.sample.tobytes()
        if not tiled:
            assert result.images.tobytes() == expected.images.tobytes()
            assert result.metadata == expected.metadata


@pytest.mark.parametrize("upscale_by", ["latents", "pixels"])
def test_a_second_pass_is_planned_at_its_size(tmp_path: Path, upscale_by: str) -> None:
    folder = tiny_text_bundle.write(tmp_path)
    request = {"width": 48, "height": 48, "upscale": 2, "upscale_by": upscale_by, "seed": 1, "num_inference_steps": 2}
    expected = load(folder, "cpu")(["red", "blue"], batch_size=2, **request)
    pipeline = load(folder, "cpu", max_memory="100GB")
    assert pipeline.networks.planned is None
    pipeline.networks.max_memory = pipeline.networks.process + 750 * MB
    result = pipeline(["red", "blue"], batch_size=2, **request)
    planned = pipeline.networks.planned
    assert planned is not None
    assert (planned.one_network, planned.in_turn) == (True, True)
    assert result.sample.tobytes() == expected.sample.tobytes()
    pipeline(["red", "blue"], batch_size=2, width=48, height=48, num_inference_steps=1)
    assert pipeline.networks.planned == MemoryPlan(2)


def test_classes_are_drawn_in_smaller_batches(tmp_path: Path) -> None:
    name = ROOT / "models_onnx" / "mnist-paper"
    request = {"seed": 3, "num_inference_steps": 2, "guidance_scale": 2.0}
    expected = load(name, "cpu")([1] * 24, batch_size=24, **request)
    pipeline = load(name, "cpu", max_memory="100GB")
    pipeline.networks.max_memory = pipeline.networks.process + 30 * MB
    rows = []
    result = pipeline([1] * 24, batch_size=24, progress=lambda done, total: rows.append((done, total)), **request)
    planned = pipeline.networks.planned
    assert planned is not None
    assert 1 <= planned.batch_size < 24
    assert rows[-1] == (2 * -(-24 // planned.batch_size),) * 2
    assert result.images.tobytes() == expected.images.tobytes()


def test_networks_are_kept_for_the_next_request_where_they_fit_and_dropped_where_they_do_not(tmp_path: Path) -> None:
    pipeline = load(tiny_text_bundle.write(tmp_path), "cpu", max_memory="100GB")
    sessions = pipeline.networks._sessions
    pipeline("red", num_inference_steps=1)
    assert set(sessions) == set(test_memory.DRAWING)
    pipeline.networks.max_memory = pipeline.networks.process + 60 * MB
    pipeline("red", num_inference_steps=1)
    assert set(sessions) == set(test_memory.DRAWING)
    size = {"width": 32, "height": 48}
    pipeline.networks.max_memory = pipeline.networks.process + 30 * MB
    pipeline("red", num_inference_steps=1, **size)
    assert set(sessions) == {"vae_decoder"}


def test_what_was_stopped_leaves_no_network_that_has_grown(tmp_path: Path) -> None:
    pipeline = load(tiny_text_bundle.write(tmp_path), "cpu", max_memory="100GB")
    token = CancelToken()
    with pytest.raises(Cancelled):
        pipeline("red", num_inference_steps=3, cancel=token, progress=lambda *_: token.cancel())
    assert not pipeline.networks._sessions
    steps = pipeline.denoise("red", num_inference_steps=3)
    next(steps)
    steps.close()
    assert not pipeline.networks._sessions
    assert pipeline("red", num_inference_steps=3, seed=1).images.shape == (1, 8, 12, 3)


def test_the_last_evaluation_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each network, so that what follows does not find it held; and those before it keep theirs."""
    kept: list[tuple[str, bool]] = []
    run = Session.run

    def watching(self: Session, **inputs: Any) -> Any:
        kept.append((self.path.name.split("-")[0], self._keeps))
        return run(self, **inputs)

    monkeypatch.setattr(Session, "run", watching)
    load(POCKET, "cpu")("a red sneaker", num_images_per_prompt=2, batch_size=2, num_inference_steps=3)
    encoded = [each for each in kept if each[0] == "text_encoder"]
    assert encoded == [("text_encoder", False)] * len(encoded)
    rest = [("unet", True), ("unet", True), ("unet", False), ("vae_decoder", True), ("vae_decoder", False)]
    assert kept[len(encoded) :] == rest


def test_what_was_given_back_is_no_longer_held() -> None:
    """Of the pocket model's decoder, whose attention takes some 270 MB of a picture of 256 x 256 pixels and more."""
    code = (
        "import numpy as np; from runtime.available_memory import held_bytes; from runtime.bundle import open_bundle\n"
        "from runtime.networks import Networks\n"
        f"session = Networks(open_bundle({str(POCKET)!r})).session('vae_decoder')\n"
        "latents, held = np.zeros((1, 8, 80, 80), np.float32), []\n"
        "for each in (session, session.for_the_last_time()):\n"
        "    before = held_bytes(); each.run(latent_sample=latents); held.append(held_bytes() - before)\n"
        "print(*held)\n"
    )
    kept, given_back = map(int, python("-c", code).stdout.split())
    assert kept > 250 * MB
    assert given_back < -0.8 * kept


# --- the command ----------------------------------------------------------------------------------------------------


def python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, timeout=600, check=True
    )


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(tiny_text_bundle.write(tmp_path / "models"))


def test_the_command_says_what_is_given_up(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", model, "red", "--steps", "2", "--max-memory", "900GB", "-o", "out.png"]
    assert main(words) == 0
    assert capsys.readouterr().err == "within 900.0 GB: one network at a time, 1 image at once\n"


def test_the_command_refuses_before_it_draws(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for figure, message in (
        ("1MB", "error: max_memory 1 MB is too little for 12x8"),
        ("3G", "error: max_memory is '3G'"),
    ):
        assert main(["--model", model, "red", "--max-memory", figure, "-o", "out.png"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(message)
        assert error.count("\n") == 1
    assert not Path("out.png").exists()


def test_a_list_says_it_once(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.txt").write_text("red\nblue\ngreen\n")
    assert main(["--model", model, "--prompts", "list.txt", "--steps", "1", "--max-memory", "900GB", "-o", "out"]) == 0
    assert capsys.readouterr().err.count("within 900.0 GB") == 1


def test_a_list_of_tiled_pictures_is_not_drawn_twice(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PORTABLE, "unet", FUSED["unet"])
    Path("list.txt").write_text("red\nblue\n")
    pipeline = load(model, "cpu", max_memory="100GB")
    demand = test_memory.asked(pipeline.bundle, 160, 200)
    pipeline.networks.max_memory = pipeline.networks.process + list(ways(pipeline.bundle, demand, 1, 0).values())[-1]
    defaults = {"width": 160, "height": 200, "num_inference_steps": 1}
    entries = read_prompt_list(Path("list.txt"), "prompt")
    reports = [draw_list(pipeline, entries, Path("out"), defaults, seed=1) for _ in range(2)]
    assert [(each.drawn, each.kept) for each in reports] == [(2, 0), (0, 2)]
    assert "vae_tile" in Path("out/index.jsonl").read_text()


def test_a_tiled_picture_is_drawn_again_with_the_same_tiles(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFUSION_ANYWHERE_MODELS", "models")
    monkeypatch.setitem(PORTABLE, "unet", FUSED["unet"])
    bundle = open_bundle(model)
    demand = test_memory.asked(bundle, 160, 200)
    memory, limit = list(ways(bundle, demand, 1, 0).items())[-1]
    assert memory.tiles is not None
    pipeline = load(model, "cpu", max_memory="100GB")
    pipeline.networks.max_memory = pipeline.networks.process + limit
    pipeline("red", width=160, height=200, num_inference_steps=2, seed=1).save("out.png")
    assert main(["replay", "out.png", "-o", "again.png"]) == 0
    assert "out.png: the same, bit for bit" in capsys.readouterr().out
    with Image.open("out.png") as before, Image.open("again.png") as after:
        assert json.loads(before.info[METADATA_KEY])["vae_tile"] == memory.tiles.tile
        assert before.info[METADATA_KEY] == after.info[METADATA_KEY]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read as Linux has it")
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_the_limit_is_kept_measured_from_outside(tmp_path: Path, share: float) -> None:
    """Peak resident memory, mapped files included: between what is needed with nothing given up, and the least."""
    size, process = 384, 150 * MB
    pocket = open_bundle(POCKET)
    demand = dataclasses.replace(test_memory.asked(pocket, size, size), process=process)
    most = estimate(pocket, demand, MemoryPlan(1)).peak
    least = estimate(pocket, demand, list(ways(pocket, demand, 1, process))[-1]).peak
    limit = int(least + share * (most - least))
    code = (
        "import re, sys; from pathlib import Path; from runtime.__main__ import main; status = main(sys.argv[1:])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]); sys.exit(status)"
    )
    words = ["a red sneaker", "--size", f"{size}x{size}", "--steps", "1", "--max-memory", f"{limit}B"]
    done = python("-c", code, *words, "-o", str(tmp_path / "out.png"))
    peak = 1024 * int(done.stdout.splitlines()[-1])
    assert peak <= 1.05 * limit, done.stderr
