"""Proves what an export of Stable Diffusion reads and writes down without tracing anything: sizes and words that a file
states, VAE and LoRAs and where they came from, inpainting, other predictions; and how the command takes its options."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import original_layout, write_folder
from export_samples import ill_conditioned_network
from random_weights import random_state
from safetensors.torch import save_file
from text_samples import CONFIG, VOCABULARY, write_checkpoint, write_tokenizer

from export.__main__ import lora, main
from export.conformance import Conformance
from export.errors import ExportError
from export.graph_writer import GraphWriter
from export.graphs import class_conditional_unet
from export.sd15 import describe, export_sd15, noise_schedule
from export.sd15_defaults import choose_defaults
from export.sd15_source import Source, open_source
from runtime.errors import RequestError
from training import checkpoint, configuration
from training.errors import CheckpointError
from training.stable_diffusion.config import StableDiffusionConfig
from training.stable_diffusion.lora import LoraFile
from training.stable_diffusion.pocket.checkpoint import CONFIG_KEY, KNOWN_WORDS_KEY, MODEL

LONG = "x" * 300 + ".safetensors"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("published") / "model.safetensors")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture
def opened(tokenizer: Path) -> Callable[..., Source]:
    def run(path: Path, **options: Any) -> Source:
        usual = {"vae": None, "loras": (), "use_ema": False, "prediction_type": None, "zero_terminal_snr": False}
        return open_source(path, **{**usual, "config": CONFIG, "tokenizer": tokenizer, "licence": "none", **options})

    return run


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest(source: Source) -> dict[str, Any]:
    schedule = noise_schedule(source.model.config.scheduler)
    return describe(source, "small", schedule, choose_defaults(schedule))


def test_a_plain_checkpoint(published: Path, opened: Callable[..., Source]) -> None:
    source = opened(published)
    assert source.provenance["source"] == "model.safetensors"
    assert source.provenance["sha256"] == sha256(published)
    training = source.provenance["training"]
    assert configuration.build(StableDiffusionConfig, json.loads(json.dumps(training["config"]))) == CONFIG
    assert (training["layout"], training["use_ema"], training["vae"], training["loras"]) == (
        "single-file",
        False,
        None,
        [],
    )
    said = manifest(source)
    assert (said["defaults"]["width"], said["defaults"]["height"]) == (128, 128)  # 64 latents of 2 pixels
    assert said["conditioning"]["known_words"] is None
    assert said["conditioning"]["vocab_size"] == len(VOCABULARY)
    assert said["noise_schedule"]["betas"]["zero_terminal_snr"] is False


def test_a_vae_apart_has_a_provenance_of_its_own(
    published: Path, opened: Callable[..., Source], tmp_path: Path
) -> None:
    vae = tmp_path / "other-vae.safetensors"
    tensors = original_layout(CONFIG, random_state(CONFIG))
    save_file({name: 2 * tensor for name, tensor in tensors.items() if name.startswith("first_stage_model.")}, vae)
    source = opened(published, vae=vae)
    assert source.provenance["sha256"] == sha256(published)
    assert source.provenance["training"]["vae"] == {"source": "other-vae.safetensors", "sha256": sha256(vae)}
    plain = opened(published).model.vae.quant_conv.bias
    assert torch.equal(source.model.vae.quant_conv.bias, 2 * plain)


def test_loras_are_merged_and_told(published: Path, opened: Callable[..., Source], tmp_path: Path) -> None:
    plain = opened(published).model.unet.get_submodule(LAYER).weight
    down, up = torch.randn(1, plain.shape[1]), torch.randn(plain.shape[0], 1)
    path, name = tmp_path / "style.safetensors", f"lora_unet_{LAYER.replace('.', '_')}"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, path)
    source = opened(published, loras=[LoraFile(path, 0.5)])
    told = {"source": "style.safetensors", "sha256": sha256(path), "scale": 0.5}
    assert source.provenance["training"]["loras"] == [told]
    merged = source.model.unet.get_submodule(LAYER).weight
    torch.testing.assert_close(merged, plain + 0.5 * up @ down, rtol=1e-6, atol=1e-6)


def write_own(path: Path, **metadata: str) -> Path:
    """A file as this project's own training writes it."""
    words = ["red", "square"]
    facts = {CONFIG_KEY: configuration.to_json(CONFIG), KNOWN_WORDS_KEY: json.dumps(words)}
    checkpoint.write(path, MODEL, original_layout(CONFIG, random_state(CONFIG)), facts | metadata)
    return path


def test_a_file_of_our_own_states_its_sizes_and_words(opened: Callable[..., Source], tmp_path: Path) -> None:
    source = opened(write_own(tmp_path / "model.safetensors"), config=None)
    assert source.model.config == CONFIG
    said = manifest(source)
    assert said["conditioning"]["known_words"] == ["red", "square"]
    assert (said["defaults"]["width"], said["defaults"]["height"]) == (64, 64)


@pytest.mark.parametrize(
    "metadata", [{CONFIG_KEY: "{}"}, {CONFIG_KEY: "no JSON"}, {KNOWN_WORDS_KEY: "7"}, {KNOWN_WORDS_KEY: "[7]"}]
)
def test_a_file_of_our_own_that_states_nonsense_is_refused(
    opened: Callable[..., Source], tmp_path: Path, metadata: dict[str, str]
) -> None:
    path = write_own(tmp_path / "model.safetensors", **metadata)
    with pytest.raises(CheckpointError, match="does not state its own sizes") as caught:
        opened(path, config=None)
    assert "\n" not in str(caught.value)


IMPOSSIBLE = [
    ("text_encoder", "num_hidden_layers", 10**9),
    ("text_encoder", "max_position_embeddings", -1),
    ("text_encoder", "vocab_size", -5),
    ("text_encoder", "hidden_size", 2**62),
    ("text_encoder", "layer_norm_eps", 0.0),
    ("unet", "layers_per_block", -3),
    ("unet", "cross_attention_dim", 0),
    ("vae", "layers_per_block", 10**9),
    ("vae", "latent_channels", 0),
    ("vae", "scaling_factor", 10**400),
]


@pytest.mark.parametrize(("part", "name", "value"), IMPOSSIBLE)
def test_sizes_that_no_model_has_are_refused_before_anything_is_built(
    opened: Callable[..., Source], tmp_path: Path, part: str, name: str, value: float
) -> None:
    stated = json.loads(configuration.to_json(CONFIG))
    stated[part][name] = value
    path = write_own(tmp_path / "model.safetensors", **{CONFIG_KEY: json.dumps(stated)})
    with pytest.raises(CheckpointError, match=f"does not state its own sizes: {name} is -?\\d") as caught:
        opened(path, config=None)
    assert "\n" not in str(caught.value)


def test_more_levels_than_any_model_has_are_refused() -> None:
    with pytest.raises(ValueError, match="the number of levels is 17; it must be from 1 to 16"):
        replace(CONFIG.unet, levels=CONFIG.unet.levels[:1] * 17)
    with pytest.raises(ValueError, match="the number of block_out_channels is 17; it must be from 1 to 16"):
        replace(CONFIG.vae, block_out_channels=(8,) * 17)


def test_inpainting_says_what_its_unet_is_given(opened: Callable[..., Source], tmp_path: Path) -> None:
    config = replace(CONFIG, unet=replace(CONFIG.unet, in_channels=9))
    source = opened(write_checkpoint(tmp_path / "inpainting.safetensors", config))
    assert [(part["name"], part["channels"]) for part in manifest(source)["unet_input"]] == [
        ("sample", 4),
        ("mask", 1),
        ("masked_sample", 4),
    ]


@pytest.mark.parametrize("name", ["in_channels", "out_channels"])
def test_a_vae_of_other_than_colour_pictures_is_refused(
    opened: Callable[..., Source], tmp_path: Path, name: str
) -> None:
    config = replace(CONFIG, vae=replace(CONFIG.vae, **{name: 1}))
    with pytest.raises(ExportError, match=f"the VAE's {name} is 1; pictures have 3 channels"):
        opened(write_checkpoint(tmp_path / "grey.safetensors", config), config=config)


def test_v_prediction_with_zero_terminal_snr(published: Path, opened: Callable[..., Source]) -> None:
    source = opened(published, prediction_type="v_prediction", zero_terminal_snr=True)
    schedule = manifest(source)["noise_schedule"]
    assert (schedule["prediction_type"], schedule["timestep_spacing"]) == ("v_prediction", "trailing")
    assert schedule["alphas_cumprod"][-1] == 0
    assert schedule["betas"]["zero_terminal_snr"] is True


def test_epsilon_with_zero_terminal_snr_is_refused_before_the_work(
    published: Path, tokenizer: Path, tmp_path: Path
) -> None:
    model = {"config": CONFIG, "tokenizer": tokenizer, "zero_terminal_snr": True}
    with pytest.raises(RequestError, match="no signal is left at timestep 999"):
        export_sd15(published, tmp_path / "small", **model, report=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_brings_its_tokenizer(opened: Callable[..., Source], tokenizer: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", CONFIG, random_state(CONFIG))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    source = opened(folder, config=None, tokenizer=None)
    assert source.tokenizer.eos_token_id == len(VOCABULARY) - 1
    assert source.provenance["training"]["layout"] == "diffusers-folder"


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("style.safetensors:-1", "style.safetensors", -1.0),
        ("a:b/style.safetensors", "a:b/style.safetensors", 1.0),
        ("C:\\loras\\style.safetensors", "C:\\loras\\style.safetensors", 1.0),
        ("C:\\loras\\style.safetensors:0.5", "C:\\loras\\style.safetensors", 0.5),
        ("C:/loras/style.safetensors:.5", "C:/loras/style.safetensors", 0.5),
    ],
)
def test_a_lora_is_a_file_and_its_scale(text: str, path: str, scale: float) -> None:
    assert lora(text) == (Path(path), scale)


@pytest.mark.parametrize("text", ["1e-4", "unet", "unet:", "unet:0", "unet:-1", "unet:nan", "unet:inf", "unet:loose"])
def test_an_accepted_bound_is_a_graph_and_a_number(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["sd15", "model.safetensors", "--out", "small", "--accept-parity", "unet:1e-4", text])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"{text!r} is not ROLE:X with a positive number, such as unet:1e-4" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("unet_2:1e-4",), "there is no graph 'unet_2' whose parity could be accepted; there are text_encoder, unet"),
        (("unet:1e-4", "--precision", "fp16"), "leave out --accept-parity with --precision fp16"),
    ],
)
def test_a_bound_that_nothing_could_use_is_refused(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert main(["sd15", str(published), "--out", str(tmp_path / "small"), "--accept-parity", *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bound_is_accepted_for_its_graph_alone(tmp_path: Path) -> None:
    """And the error says how to ask for it."""
    conformance, option = Conformance(), "--accept-parity {role}:"
    for accepted in ({}, {"text_encoder": 1000.0}, {"unet": 1000.0}):
        spec = class_conditional_unet(ill_conditioned_network(), 60)
        writer = GraphWriter(tmp_path, conformance, accepted, option, report=lambda line: None)
        if "unet" in accepted:
            assert writer.write(spec)["fp32"]["parity"]["accepted"] == 1000
        else:
            with pytest.raises(ExportError, match=r"to accept that, add --accept-parity unet:\d\.\de[+-]\d\d$"):
                writer.write(spec)


def test_a_file_may_have_a_colon_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style:2").touch()
    assert lora("style:2") == (Path("style:2"), 1.0)
    assert lora("style:2:3") == (Path("style:2"), 3.0)


@pytest.mark.parametrize("text", ["style.safetensors:", "style.safetensors:strong", "style:nan", "style:inf", ":0.8"])
def test_a_scale_that_is_none_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        lora(text)
    with pytest.raises(SystemExit) as caught:
        main(["sd15", "model.safetensors", "--out", "small", "--lora", "good.safetensors:1", text])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"{text!r} is neither a file nor FILE:SCALE with a number" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ("sd15", LONG),
        ("sd15", "{checkpoint}", "--vae", LONG),
        ("sd15", "{checkpoint}", "--lora", LONG),
        ("sd15", "{checkpoint}", "--lora", f"{LONG}:0.8"),
        ("ddpm", LONG),
    ],
)
def test_a_name_that_is_too_long_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    path = write_own(tmp_path / "model.safetensors")
    arguments = [option.format(checkpoint=path) for option in options]
    try:
        status = main([*arguments, "--out", str(tmp_path / "small")])
    except SystemExit as end:  # how argparse ends
        status = int(str(end.code))
    said = capsys.readouterr().err
    assert status == 2
    assert f"{LONG[:100]!r} is no path to a checkpoint (File name too long)" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_is_no_bundle_is_refused_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ExportError, match=r"holds thesis.tex, which is no part of a bundle"):
        export_sd15(tmp_path / "missing.safetensors", tmp_path, report=lambda line: None)


def test_an_unknown_precision_is_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="precision 'int3' is unknown; choose fp32 or fp16"):
        export_sd15(published, tmp_path / "small", precision="int3")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.safetensors", None, "does not exist"),
        ("text.safetensors", b"not weights\n", "is text and no safetensors file"),
        ("x" * 300 + ".safetensors", None, "is no path"),
        ("terabyte.safetensors", (2**40).to_bytes(8, "little") + b"{}", "its header should take"),
    ],
)
def test_a_checkpoint_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes | None, message: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    before = sorted(tmp_path.iterdir())
    assert main(["sd15", str(tmp_path / name), "--out", str(tmp_path / "models" / "small")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
