"""A text bundle of a few kilobytes for tests of the runtime: networks whose answers are known in closed form.

    text_encoder   last_hidden_state = (table, then extra_embeddings)[input_ids] + clip_skip
    unet           out_sample = sample · t / (t + 1) + mean(encoder_hidden_states) / 10
    vae_encoder    mean = each pixel's 2 x 2 average, and a fourth channel of zeros; log-variance = 0
    vae_decoder    every latent four pixels; the fourth channel is dropped

Latents are half as high and wide as images, and half as large as the VAE has them. A prompt has room for six words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from runtime.plan import NoiseSchedule, compile_plan

WORDS = ("a", "red", "green", "blue", "circle", "square", "on", "white")
BOS, EOS, UNKNOWN, FIRST_WORD = 0, 1, 2, 3
VOCAB_SIZE, MAX_LENGTH, DIM, LAYERS = FIRST_WORD + len(WORDS), 8, 2, 3
CHANNELS, FACTOR, SCALING_FACTOR, TRAIN_STEPS = 4, 2, 0.5, 100
PREVIEW = {"weights": [[2, 0, 0], [0, 2, 0], [0, 0, 2], [0, 0, 0]], "biases": [0, 0, 0]}  # what the decoder does
TABLE = np.arange(VOCAB_SIZE * DIM, dtype=np.float32).reshape(VOCAB_SIZE, DIM) / 10


def alphas_cumprod() -> np.ndarray:
    return np.cumprod(1 - np.linspace(1e-3, 0.1, TRAIN_STEPS))


def ids(prompt: str) -> list[int]:
    """What the tokenizer must make of words with one space between them."""
    words = [FIRST_WORD + WORDS.index(word) if word in WORDS else UNKNOWN for word in prompt.lower().split()]
    kept = words[: MAX_LENGTH - 2]
    return [BOS, *kept, EOS, *[EOS] * (MAX_LENGTH - 2 - len(kept))]


def shift(prompt: str, clip_skip: int = 0) -> float:
    """What the U-Net adds to every element of its output for a prompt."""
    return float((TABLE[ids(prompt)] + clip_skip).mean()) / 10


def tokenizer() -> bytes:
    """A word-level tokenizer with all that a host must leave out: a post-processor, padding and truncation."""
    vocabulary = {"<bos>": BOS, "<eos>": EOS, "<unk>": UNKNOWN} | {word: FIRST_WORD + i for i, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("<eos>", EOS), ("<bos>", BOS))
    made.enable_padding(length=12)
    made.enable_truncation(3)
    return made.to_str().encode()


def tensor(name: str, shape: Sequence[int | str], dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def model(
    nodes: list[NodeProto],
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    constants: dict[str, np.ndarray],
) -> bytes:
    def declared(values: list[dict[str, Any]]) -> list[Any]:
        kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        return [helper.make_tensor_value_info(each["name"], kinds[each["dtype"]], each["shape"]) for each in values]

    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", declared(inputs), declared(outputs), initializers)
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    return made


INPUTS = {
    "text_encoder": [
        tensor("input_ids", ["batch", "length"], "int64"),
        tensor("extra_embeddings", ["extra", DIM]),
        tensor("clip_skip", [], "int64"),
    ],
    "unet": [
        tensor("sample", ["batch", CHANNELS, "h", "w"]),
        tensor("timestep", ["batch"]),
        tensor("encoder_hidden_states", ["batch", "length", DIM]),
    ],
    "vae_encoder": [tensor("sample", ["batch", 3, "height", "width"])],
    "vae_decoder": [tensor("latent_sample", ["batch", CHANNELS, "h", "w"])],
}
OUTPUTS = {
    "text_encoder": [tensor("last_hidden_state", ["batch", "length", DIM])],
    "unet": [tensor("out_sample", ["batch", CHANNELS, "h", "w"])],
    "vae_encoder": [tensor("latent_parameters", ["batch", 2 * CHANNELS, "h", "w"])],
    "vae_decoder": [tensor("sample", ["batch", 3, "height", "width"])],
}


def nodes() -> dict[str, tuple[list[NodeProto], dict[str, np.ndarray]]]:
    """Nodes and constants of every graph."""
    pool = np.zeros((2 * CHANNELS, 3, FACTOR, FACTOR), np.float32)
    spread = np.zeros((CHANNELS, 3, FACTOR, FACTOR), np.float32)
    for channel in range(3):
        pool[channel, channel], spread[channel, channel] = 1 / FACTOR**2, 1
    node = helper.make_node
    return {
        "text_encoder": (
            [
                node("Concat", ["table", "extra_embeddings"], ["rows"], axis=0),
                node("Gather", ["rows", "input_ids"], ["embedded"]),
                node("Cast", ["clip_skip"], ["skip"], to=TensorProto.FLOAT),
                node("Add", ["embedded", "skip"], ["last_hidden_state"]),
            ],
            {"table": TABLE},
        ),
        "unet": (
            [
                node("Unsqueeze", ["timestep", "axes"], ["t"]),
                node("Add", ["t", "one"], ["t_plus_one"]),
                node("Div", ["t", "t_plus_one"], ["ratio"]),
                node("Mul", ["sample", "ratio"], ["scaled"]),
                node("ReduceMean", ["encoder_hidden_states", "text_axes"], ["mean"], keepdims=0),
                node("Div", ["mean", "ten"], ["small"]),
                node("Unsqueeze", ["small", "axes"], ["shift"]),
                node("Add", ["scaled", "shift"], ["out_sample"]),
            ],
            {
                "axes": np.array([1, 2, 3]),
                "text_axes": np.array([1, 2]),
                "one": np.array(1, np.float32),
                "ten": np.array(10, np.float32),
            },
        ),
        "vae_encoder": (
            [node("Conv", ["sample", "pool"], ["latent_parameters"], strides=[FACTOR, FACTOR])],
            {"pool": pool},
        ),
        "vae_decoder": (
            [node("ConvTranspose", ["latent_sample", "spread"], ["sample"], strides=[FACTOR, FACTOR])],
            {"spread": spread},
        ),
    }


def graphs() -> dict[str, bytes]:
    """The ONNX file of every role."""
    return {role: model(made, INPUTS[role], OUTPUTS[role], constants) for role, (made, constants) in nodes().items()}


def described(name: str, data: bytes) -> dict[str, Any]:
    return {"file": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def manifest(files: dict[str, bytes], prediction_type: str = "epsilon") -> dict[str, Any]:
    schedule = NoiseSchedule(alphas_cumprod(), prediction_type)
    entry = {"external_data": [], "providers": ["any"], "opset": 20, "parity": {}, "initializers": {}}
    return {
        "format_version": 1,
        "name": "tiny-text",
        "family": "stable-diffusion-1",
        "provenance": {"source": "by hand", "sha256": "", "licence": "Apache-2.0", "training": None, "exporter": {}},
        "graphs": {
            role: {
                "fp32": described(f"{role}.onnx", files[f"{role}.onnx"])
                | entry
                | {"inputs": INPUTS[role], "outputs": OUTPUTS[role]}
            }
            for role in INPUTS
        },
        "noise_schedule": {
            "num_train_timesteps": TRAIN_STEPS,
            "alphas_cumprod": schedule.alphas_cumprod.tolist(),
            "prediction_type": prediction_type,
            "final_alpha_cumprod": 1.0,
            "timestep_spacing": "trailing",
            "steps_offset": 0,
            "betas": {},
        },
        "pixels": None,
        "latents": {"channels": CHANNELS, "factor": FACTOR, "scaling_factor": SCALING_FACTOR, "preview": PREVIEW},
        "unet_input": [{"name": "sample", "channels": CHANNELS}],
        "conditioning": {
            "kind": "text",
            "tokenizer": described("tokenizer.json", files["tokenizer.json"]),
            "max_length": MAX_LENGTH,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": EOS,
            "vocab_size": VOCAB_SIZE,
            "embedding_dim": DIM,
            "num_hidden_layers": LAYERS,
            "clip_skip": 0,
            "known_words": None,
        },
        "defaults": {
            "sampler": "ddim",
            "num_inference_steps": 10,
            "guidance_scale": 3.0,
            "width": 12,
            "height": 8,
        },
        "plans": {"ddim-10": compile_plan(schedule, "ddim", 10).to_json()},
    }


def told_unet() -> bytes:
    """A U-Net that is told of a mask and the masked sample, in channels 4 and 5 to 8, and adds both to its output."""
    made, constants = nodes()["unet"]
    node, bounds = helper.make_node, {"x": (0, CHANNELS), "mask": (CHANNELS, CHANNELS + 1), "masked": (CHANNELS + 1, 9)}
    constants["channel"] = np.array([1])
    before, after = [], made[-1]
    for name, (begin, end) in bounds.items():
        constants |= {f"{name}_begin": np.array([begin]), f"{name}_end": np.array([end])}
        before.append(node("Slice", ["sample", f"{name}_begin", f"{name}_end", "channel"], [name]))
    made[3].input[0], after.output[0] = "x", "plain"
    sums = [node("Add", ["plain", "mask"], ["with_mask"]), node("Add", ["with_mask", "masked"], ["out_sample"])]
    inputs = [tensor("sample", ["batch", 9, "h", "w"]), *INPUTS["unet"][1:]]
    return model([*before, *made, *sums], inputs, OUTPUTS["unet"], constants)


def write(folder: Path, prediction_type: str = "epsilon", told: bool = False) -> Path:
    """Write the bundle into ``folder``/tiny-text, one for inpainting if its U-Net is ``told`` of masks."""
    target = folder / "tiny-text"
    target.mkdir(parents=True)
    files = {f"{role}.onnx": data for role, data in graphs().items()} | {"tokenizer.json": tokenizer()}
    files |= {"unet.onnx": told_unet()} if told else {}
    made = manifest(files, prediction_type)
    if told:
        made["unet_input"] += [{"name": "mask", "channels": 1}, {"name": "masked_sample", "channels": CHANNELS}]
        made["graphs"]["unet"]["fp32"]["inputs"] = [tensor("sample", ["batch", 9, "h", "w"]), *INPUTS["unet"][1:]]
    for name, data in files.items():
        (target / name).write_bytes(data)
    (target / "manifest.json").write_text(json.dumps(made))
    return target


def changed(folder: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a bundle in ``target``/changed, with another manifest."""
    copy = target / "changed"
    copy.mkdir()
    for file in filter(Path.is_file, folder.iterdir()):
        (copy / file.name).write_bytes(file.read_bytes())
    value = json.loads((copy / "manifest.json").read_text())
    change(value)
    (copy / "manifest.json").write_text(json.dumps(value))
    return copy
