"""Proves that files which are no Stable Diffusion 1.x checkpoints get one clear line that says what they are."""

from __future__ import annotations

import json
import random
import re
import sys

import pytest
import torch
from checkpoint_files import original_layout, write_folder
from random_weights import SMALLEST, random_state
from safetensors.torch import save_file

from training.stable_diffusion.checkpoint import CheckpointError, load_checkpoint

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def state():
    return random_state(SMALLEST)


@pytest.fixture(scope="module")
def tensors(state):
    return original_layout(SMALLEST, state)


def refusal(path, **arguments) -> str:
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(path, config=SMALLEST, **arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def header(length: int, text: bytes = b"") -> bytes:
    return length.to_bytes(8, "little") + text


def described(shape: list[int], size: int) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    return header(len(text), text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is text and no safetensors file (it begins 'version ')"),
        (b"<!DOCTYPE html><html></html>", "is text and no safetensors file"),
        (header(10**12, b"{}"), "its header should take 1,000,000,000,000 bytes, but the file has 10"),
        (described([500_000, 500_000], 10**12), "is cut short or damaged"),
        (described([2**62, 4], 4) + b"1234", "is cut short or damaged"),
        (b"", "is empty or cut short"),
        (header(2, b"[]"), "is cut short or damaged"),
    ],
    ids=["pointer", "page", "header of 1 TB", "tensor of 1 TB", "overflow", "empty", "no object"],
)
def test_what_is_no_safetensors_file(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert message in refusal(tmp_path / "model.safetensors")


def test_truncated_and_damaged_files(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    whole = path.read_bytes()
    generator = random.Random(0)
    for length in (0, 3, 8, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "cut short" in refusal(path)
    for _ in range(8):  # in the header, where damage can lie about sizes
        damaged = bytearray(whole)
        damaged[generator.randrange(1000)] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path, config=SMALLEST)
            refused = ""
        except CheckpointError as error:
            refused = str(error)
        assert "\n" not in refused


def test_all_problems_are_one_line_that_lists_a_few_and_counts_the_rest(tmp_path, tensors):
    changed = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{UNET}output_blocks.0.")}
    gone = len(tensors) - len(changed)
    changed |= {f"strange.{i}": torch.ones(1) for i in range(5)}
    changed[f"{UNET}out.2.bias"] = torch.ones(7)
    changed[f"{UNET}time_embed.0.bias"] = torch.ones(32, dtype=torch.int8)
    save_file(changed, tmp_path / "model.safetensors")
    message = refusal(tmp_path / "model.safetensors")
    assert f"does not hold the {len(tensors) - 1} tensors of this model: {gone} missing" in message
    assert re.search(rf"output_blocks\.0\.\S+; \S+; \S+ and {gone - 3} more\)", message)
    assert "5 unknown (strange.0; strange.1; strange.2 and 2 more)" in message
    assert f"2 misshapen ({UNET}time_embed.0.bias, int8 [32] where [32] is needed; " in message
    assert f"{UNET}out.2.bias, float32 [7] where [4] is needed" in message


def with_width(tensors, width):
    return {n: torch.zeros(len(t), width) if n.endswith("attn2.to_k.weight") else t for n, t in tensors.items()}


OTHERS = {
    "Stable Diffusion 2 checkpoint": lambda t: t | {"cond_stage_model.model.ln_final.bias": torch.ones(1)},
    "Stable Diffusion XL checkpoint": lambda t: t | {"conditioner.embedders.0.x": torch.ones(1)},
    "a Stable Diffusion 2 checkpoint": lambda t: with_width(t, 1024),
    "a Stable Diffusion XL checkpoint": lambda t: with_width(t, 2048),
    "a Stable Diffusion 3 checkpoint": lambda t: {f"{UNET}joint_blocks.0.x": torch.ones(1)},
    "a Flux checkpoint": lambda t: {"double_blocks.0.x": torch.ones(1)},
    "a ControlNet": lambda t: {"control_model.x": torch.ones(1)},
    "a LoRA": lambda t: {"lora_unet_mid_block.lora_down.weight": torch.ones(1)},
    "an InstructPix2Pix checkpoint (8 input channels)": lambda t: (
        t | {f"{UNET}input_blocks.0.0.weight": torch.ones(8, 8, 3, 3)}
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_models_are_refused_by_name(tmp_path, tensors, what):
    save_file(OTHERS[what](tensors), tmp_path / "model.safetensors")
    assert what in refusal(tmp_path / "model.safetensors")


def test_a_tensor_under_two_names(tmp_path, tensors):
    save_file(tensors | {"vae.quant_conv.bias": torch.ones(8)}, tmp_path / "model.safetensors")
    assert "holds first_stage_model.quant_conv.bias twice" in refusal(tmp_path / "model.safetensors")


def test_a_vae_that_does_not_fit(tmp_path, state, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    folder = write_folder(tmp_path / "other", SMALLEST, state) / "vae"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
    message = refusal(tmp_path / "model.safetensors", vae=folder)
    assert "does not fit the rest of the model" in message
    assert "out_channels is 4; the VAE has 16 latent_channels" in message


def test_files_that_are_not_there_or_have_another_ending(tmp_path):
    assert "gone.safetensors does not exist" in refusal(tmp_path / "gone.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "does not end like a checkpoint; these are read: .safetensors .ckpt" in refusal(tmp_path / "model.gguf")
    assert "is missing" in refusal(tmp_path)
    assert "does not exist" in refusal("no/such/thing")
    assert "is no path" in refusal("x" * 5000)
    assert "does not exist" in refusal("owner/model.safetensors")


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    """A model hub that cannot be reached, and an empty cache of it."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the optional extra `hub` is not installed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_name_on_the_hub_needs_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "install huggingface_hub: pip install 'diffusion-anywhere[hub]'" in refusal("owner/stable-diffusion-v1-5")


def test_a_name_that_cannot_be_fetched(hub_cache):
    assert "owner/stable-diffusion-v1-5 is no file or folder here and cannot be fetched from the model hub" in refusal(
        "owner/stable-diffusion-v1-5"
    )


@pytest.mark.parametrize("precision", ["", ".fp16"])
def test_a_name_that_was_fetched_before(hub_cache, state, precision):
    repository = hub_cache / "models--owner--stable-diffusion-v1.5"
    snapshot = write_folder(repository / "snapshots" / ("c0ffee" + "0" * 34), SMALLEST, state)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for path in snapshot.rglob("*.safetensors"):
        path.rename(path.with_name(f"{path.stem}{precision}.safetensors"))
    model = load_checkpoint("owner/stable-diffusion-v1.5")
    assert model.provenance.source == f"owner/stable-diffusion-v1.5@{snapshot.name}"
    assert torch.equal(model.unet.conv_in.weight, state["unet.conv_in.weight"])
