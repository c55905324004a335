"""Proves that a folder exported by others is refused in one clear line where it is not what it should be.

The folder is made by hand and tiny; ``test_foreign_exported`` has real ones.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime import load
from runtime.bundle import Bundle, open_bundle
from runtime.errors import BundleError, DiffusionError, RequestError
from runtime.foreign.scheduler import read_scheduler
from runtime.session import Session

FLOAT, INT64, INT32, HALF = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT16
Tensor = tuple[str, int, list[str | int]]

TEXT: list[Tensor] = [("input_ids", INT32, ["batch", "length"])]
STATES: list[Tensor] = [("last_hidden_state", FLOAT, ["batch", "length", 2])]
IMAGE: list[str | int] = ["batch", "channels", "height", "width"]
UNET: list[Tensor] = [
    ("sample", FLOAT, IMAGE),
    ("timestep", INT64, []),
    ("encoder_hidden_states", FLOAT, ["batch", "length", 2]),
]
VOCAB = {"a</w>": 0, "b</w>": 1, "a": 2, "b": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}


def write_graph(
    folder: Path,
    role: str,
    inputs: list[Tensor],
    outputs: list[Tensor],
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    external: bool = False,
) -> None:
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    values = [[helper.make_tensor_value_info(*each) for each in group] for group in (inputs, outputs)]
    graph = helper.make_graph(nodes, role, *values, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    (folder / role).mkdir(parents=True)
    path = folder / role / "model.onnx"
    onnx.save(model, path, save_as_external_data=external, location="weights.pb", size_threshold=0)


def write_unet(folder: Path, inputs: list[Tensor] = UNET) -> None:
    """out_sample = sample · timestep / 1000, and a weight from which the channels can be seen."""
    nodes = [
        helper.make_node("Cast", ["timestep"], ["t"], to=FLOAT),
        helper.make_node("Div", ["t", "thousand"], ["share"]),
        helper.make_node("Mul", ["sample", "share"], ["out_sample"]),
    ]
    weights = {"thousand": np.array(1000, np.float32), "unet.conv_in.weight": np.zeros((8, 4, 3, 3), np.float32)}
    write_graph(folder, "unet", inputs, [("out_sample", FLOAT, IMAGE)], nodes, weights, external=True)


def write_folder(folder: Path) -> Path:
    gather = helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])
    write_graph(folder, "text_encoder", TEXT, STATES, [gather], {"table": np.zeros((7, 2), np.float32)})
    write_unet(folder)
    resize = helper.make_node("Resize", ["three", "", "scales"], ["sample"], mode="nearest")
    slice3 = helper.make_node("Slice", ["latent_sample", "zero", "end", "one"], ["three"])
    numbers = {name: np.array([value]) for name, value in (("zero", 0), ("end", 3), ("one", 1))}
    weights = numbers | {"scales": np.array([1, 1, 8, 8], np.float32)}
    decoder = [("latent_sample", FLOAT, IMAGE)], [("sample", FLOAT, IMAGE)]
    write_graph(folder, "vae_decoder", *decoder, [slice3, resize], weights)
    config = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085}
    for name, value in {
        "model_index.json": {"_class_name": "OnnxStableDiffusionPipeline"},
        "scheduler/scheduler_config.json": config | {"beta_end": 0.012, "steps_offset": 1},
        "tokenizer/vocab.json": VOCAB,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\na b</w>\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "a model")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def relocate(folder: Path, location: str) -> None:
    """Let the U-Net's weights lie somewhere else."""
    path = folder / "unet/model.onnx"
    model = onnx.load(path, load_external_data=False)
    for initializer in model.graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_the_folder_is_a_bundle_and_draws(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert (bundle.name, bundle.unet_input) == ("a-model", (("sample", 4),))
    result = load(folder, "cpu")("ab b", num_inference_steps=2, width=64, height=32, seed=1, guidance_scale=1)
    assert result.images.shape == (1, 32, 64, 3)


def test_a_folder_of_a_model_that_fills_in(folder: Path) -> None:
    """Nine channels are told from the first convolution; a mask is what such a model needs."""
    shutil.rmtree(folder / "unet")
    nodes = [helper.make_node("Slice", ["sample", "zero", "four", "one"], ["out_sample"])]
    weights = {name: np.array([value]) for name, value in (("zero", 0), ("four", 4), ("one", 1))}
    weights["unet.conv_in.weight"] = np.zeros((8, 9, 3, 3), np.float32)
    write_graph(folder, "unet", UNET, [("out_sample", FLOAT, IMAGE)], nodes, weights)
    conv = helper.make_node("Conv", ["sample", "kernel"], ["latent_parameters"], strides=[8, 8])
    kernel = {"kernel": np.full((8, 3, 8, 8), 1 / 192, np.float32)}
    encoder = [("sample", FLOAT, IMAGE)], [("latent_parameters", FLOAT, IMAGE)]
    write_graph(folder, "vae_encoder", *encoder, [conv], kernel)
    pipeline = load(folder, "cpu")
    assert pipeline.bundle.unet_input == (("sample", 4), ("mask", 1), ("masked_sample", 4))
    with pytest.raises(RequestError, match="fills in parts of a picture"):
        pipeline("ab b", num_inference_steps=2)
    image, mask = np.zeros((32, 64, 3), np.uint8), np.eye(32, 64, dtype=bool)
    result = pipeline("ab b", image=image, mask=mask, num_inference_steps=2, seed=1)
    assert result.images.shape == (1, 32, 64, 3)


def append_to(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b" ")


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        (lambda folder: None, False),
        (lambda folder: (folder / "picture.png").write_bytes(b""), False),
        (append_to("unet/weights.pb"), True),
        (lambda folder: edit(folder / "scheduler/scheduler_config.json", beta_end=0.013), True),
        (lambda folder: edit(folder / "model_index.json", requires_safety_checker=False), True),
    ],
)
def test_a_picture_names_the_folder_by_what_it_holds(
    folder: Path, change: Callable[[Path], object], is_another: bool
) -> None:
    before = open_bundle(folder).sha256
    change(folder)
    assert (open_bundle(folder).sha256 != before) == is_another


def test_a_half_precision_graph_is_given_half_precision(folder: Path) -> None:
    for file in (folder / "unet").iterdir():
        file.unlink()
    (folder / "unet").rmdir()
    node = helper.make_node("Identity", ["sample"], ["out_sample"])
    inputs: list[Tensor] = [(name, HALF, shape) for name, _, shape in UNET]
    weights = {"conv_in.weight": np.zeros((8, 4, 3, 3), np.float16)}
    write_graph(folder, "unet", inputs, [("out_sample", HALF, IMAGE)], [node], weights)
    bundle = open_bundle(folder)
    sample = np.full((1, 4, 2, 2), 1 / 3, np.float32)
    states, timestep = np.zeros((1, 3, 2), np.float32), np.full(1, 7, np.float32)
    unet = Session(bundle, bundle.graph("unet"))
    out = unet.run(sample=sample, timestep=timestep, encoder_hidden_states=states)["out_sample"]
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, sample.astype(np.float16))


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def link(name: str) -> Callable[[Path], object]:
    """Put a symbolic link to the same contents in place of a file or folder."""

    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        os.symlink(folder.parent / "elsewhere", folder / name)

    return change


def write(name: str, data: bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return change


def for_pytorch(folder: Path) -> None:
    for role in ("unet", "text_encoder", "vae_decoder"):
        (folder / role / "model.onnx").unlink()
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"")


def with_another_unet(folder: Path) -> None:
    for file in (folder / "unet").iterdir():
        file.unlink()
    (folder / "unet").rmdir()
    write_unet(folder, [*UNET, ("text_embeds", FLOAT, ["batch", 4])])


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, size)


def endless() -> bytes:
    """A graph of 4 MiB whose only input has two million fields of its own, where no tensor's data could be."""
    value = onnx.ValueInfoProto()
    value.MergeFromString(b"\x78\x00" * 2**21)  # fields that ONNX does not know are kept
    graph = onnx.GraphProto(input=[value])
    return onnx.ModelProto(graph=graph).SerializeToString()


UNET_FILE, SCHEDULER = "unet/model.onnx", "scheduler/scheduler_config.json"
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no graph": (remove(UNET_FILE), "lacks unet/model.onnx"),
    "for PyTorch": (for_pytorch, "holds weights for PyTorch and no ONNX; export it: python -m export sd15"),
    "SDXL": (lambda f: edit(f / "model_index.json", text_encoder_2=[1]), "with text_encoder_2; only Stable Diffusion"),
    "another input": (with_another_unet, "a unet must take sample, timestep, encoder_hidden_states"),
    "no weights": (remove("unet/weights.pb"), "weights.pb cannot be read (No such file or directory)"),
    "short weights": (cut("unet/weights.pb", 100), "which has 100; fetch both again"),
    "short graph": (cut(UNET_FILE, 150), "is cut off, or no ONNX file"),
    "empty graph": (cut(UNET_FILE, 0), "model.onnx is empty"),
    "graph of text": (write(UNET_FILE, b"<!DOCTYPE html>"), "is no ONNX file"),
    "endless graph": (lambda f: (f / UNET_FILE).write_bytes(endless()), "has more than 1000000 fields"),
    "linked weights": (link("unet/weights.pb"), "weights.pb is a symbolic link"),
    "linked graph": (link(UNET_FILE), "model.onnx is a symbolic link"),
    "linked part": (link("unet"), "unet is a symbolic link; copy the folder"),
    "linked tokenizer": (link("tokenizer"), "tokenizer is a symbolic link"),
    "weights above": (
        lambda f: relocate(f, "../weights.pb"),
        "weights lie in '../weights.pb'; it must be a plain name",
    ),
    "weights at a path": (
        lambda f: relocate(f, "/etc/passwd"),
        "weights lie in '/etc/passwd'; it must be a plain name",
    ),
    "weights in memory": (lambda f: relocate(f, "*/_ORT_MEM_ADDR_/*"), "must be a plain name"),
    "no scheduler": (remove(SCHEDULER), "scheduler_config.json cannot be read"),
    "scheduler of text": (write(SCHEDULER, b"{"), "scheduler_config.json is not JSON"),
    "scheduler list": (write(SCHEDULER, b"[]"), "must be an object, not list"),
    "deep": (write(SCHEDULER, b"[" * 10**5), "is not JSON"),
    "large": (write(SCHEDULER, b" " * (2**20 + 1)), "such a file has at most 1048576"),
    "beta": (lambda f: edit(f / SCHEDULER, beta_start=2), "betas from 2 to 0.012: they must lie between 0 and 1"),
    "beta of text": (lambda f: edit(f / SCHEDULER, beta_end="x"), "they must lie between 0 and 1"),
    "timesteps": (lambda f: edit(f / SCHEDULER, num_train_timesteps=10**9), "num_train_timesteps is 1000000000"),
    "prediction": (lambda f: edit(f / SCHEDULER, prediction_type="flow"), "prediction_type is 'flow'; it must be"),
    "trained": (lambda f: edit(f / SCHEDULER, trained_betas=[0.1]), "trained_betas must be 1000 numbers"),
    "offset": (lambda f: edit(f / SCHEDULER, steps_offset=1000), "steps_offset is 1000; it must be 0 to 999"),
    "no vocabulary": (remove("tokenizer/vocab.json"), "vocab.json cannot be read"),
    "holes": (lambda f: edit(f / "tokenizer/vocab.json", c=99), "the ids of vocab.json must be 0 to 7, each once"),
    "merges": (write("tokenizer/merges.txt", b"x y\n"), "merges.txt does not fit vocab.json"),
    "three": (write("tokenizer/merges.txt", b"a b</w>\na b a\n"), "line 2 of merges.txt is 'a b a'"),
    "bytes": (write("tokenizer/merges.txt", b"\xff\xfe"), "merges.txt is not UTF-8"),
    "tokenizer": (write("tokenizer/tokenizer.json", b"{}"), "is not a byte-pair tokenizer"),
    "special": (write("tokenizer/tokenizer_config.json", b'{"pad_token": "!"}'), "pad_token '!' is not in the voc"),
    "scale": (write("vae_decoder/config.json", b'{"scaling_factor": 0}'), "scaling_factor is 0; it must lie between"),
    "scale of NaN": (write("vae_decoder/config.json", b'{"scaling_factor": NaN}'), "scaling_factor is nan"),
}


def load_all(folder: Path) -> None:
    bundle = open_bundle(folder)
    for role in bundle.graphs:
        Session(bundle, bundle.graph(role))


@pytest.mark.parametrize("name", CHANGES)
def test_every_wrong_folder_is_one_clear_line(folder: Path, name: str) -> None:
    change, message = CHANGES[name]
    change(folder)
    with pytest.raises(BundleError) as error:
        load_all(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_vae_of_another_factor_is_one_clear_line(folder: Path) -> None:
    (folder / "vae_decoder/config.json").write_text('{"block_out_channels": [1, 2]}')
    with pytest.raises(RequestError, match="the VAE gives 256x256 where 64x64 was due"):
        load(folder, "cpu")("ab", num_inference_steps=1, width=64, height=64)


def test_what_is_not_run_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "safety_checker").mkdir()
    edit(folder / SCHEDULER, _class_name="EDMEulerScheduler")
    assert open_bundle(folder).defaults.sampler == "ddim"
    assert "its safety_checker is not run" in caplog.text
    assert "'EDMEulerScheduler' is no sampler of this program; ddim is the default instead" in caplog.text


@pytest.mark.parametrize(
    ("config", "sampler", "spacing", "to_one"),
    [
        ({"_class_name": "DDIMScheduler"}, "ddim", "leading", True),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, "ddim", "leading", False),
        ({"_class_name": "PNDMScheduler"}, "pndm", "leading", False),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, "euler", "leading", True),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m", "linspace", True),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "use_karras_sigmas": True,
                "algorithm_type": "sde-dpmsolver++",
            },
            "dpmpp_2m_sde_karras",
            "linspace",
            True,
        ),
        ({"_class_name": "LCMScheduler"}, "lcm", "leading", True),
    ],
)
def test_schedulers_mean_what_diffusers_means(
    config: dict[str, object], sampler: str, spacing: str, to_one: bool
) -> None:
    schedule, found = read_scheduler(config, "scheduler_config.json")
    assert (found, schedule.timestep_spacing) == (sampler, spacing)
    assert schedule.final_alpha_cumprod == (1.0 if to_one else schedule.alphas_cumprod[0])


def test_trained_betas_are_taken_as_they_are() -> None:
    config = {"_class_name": "DDPMScheduler", "num_train_timesteps": 2, "trained_betas": [0.5, 0.5]}
    schedule, _ = read_scheduler(config, "scheduler_config.json")
    assert schedule.alphas_cumprod.tolist() == [0.5, 0.25]


def test_clip_skip_and_learned_embeddings_are_refused(folder: Path) -> None:
    bundle: Bundle = open_bundle(folder)
    encoder = Session(bundle, bundle.graph("text_encoder"))
    ids, none, learned = np.zeros((1, 3), np.int64), np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    encoder.run(input_ids=ids, extra_embeddings=none, clip_skip=np.array(0))
    for extra, skip, message in ((none, 1, "clip_skip is 1"), (learned, 0, "learned embeddings do not go into")):
        with pytest.raises(DiffusionError, match=message):
            encoder.run(input_ids=ids, extra_embeddings=extra, clip_skip=np.array(skip))
    with pytest.raises(RequestError, match="its text encoder takes no learned words; leave out the embeddings"):
        load(folder, "cpu", embeddings="word.pt")
    unet = Session(bundle, bundle.graph("unet"))
    sample, states = np.zeros((2, 4, 2, 2), np.float32), np.zeros((2, 3, 2), np.float32)
    with pytest.raises(RequestError, match="takes one timestep for the whole batch"):
        unet.run(sample=sample, timestep=np.array([1, 2], np.float32), encoder_hidden_states=states)
