"""Proves at full size, with 1.07 billion random weights, what the other tests prove at pocket size: our networks, read
from the single file, equal those that diffusers and transformers read from a folder; both layouts give the same
weights; and opening the file takes no memory to speak of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import full_size
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from reference_models import assert_parity, reference_text_encoder
from safetensors import safe_open

from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.config import SD15

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(full_size.single_file())


def random(*shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * scale


def test_the_file_is_as_large_as_the_published_one():
    path = full_size.single_file()
    with safe_open(path, framework="pt") as file:
        assert len(file.keys()) == 1131
    assert 4.26e9 < path.stat().st_size < 4.28e9


def test_both_layouts_give_the_same_weights(model):
    other = load_checkpoint(full_size.folder())
    assert model.config == other.config == SD15
    for network in ("text_encoder", "unet", "vae"):
        weights = getattr(other, network).state_dict()
        for name, tensor in getattr(model, network).state_dict().items():
            assert torch.equal(tensor, weights[name]), name


def test_text_encoder_equals_transformers(model):
    reference = reference_text_encoder(SD15.text_encoder, model.text_encoder.state_dict())
    ids = torch.randint(0, SD15.text_encoder.vocab_size, (2, 77), generator=torch.Generator().manual_seed(0))
    hidden_states = reference(ids, output_hidden_states=True).hidden_states
    for clip_skip in (0, 1):
        inner = getattr(reference, "text_model", reference)
        expected = inner.final_layer_norm(hidden_states[-(clip_skip + 1)])
        assert_parity(model.text_encoder(ids, torch.zeros(1, 768), torch.tensor(clip_skip)), expected)


def test_unet_equals_diffusers(model):
    reference = UNet2DConditionModel.from_pretrained(full_size.folder(), subfolder="unet")
    for height, width, length in ((64, 64, 77), (17, 15, 231)):
        arguments = random(1, 4, height, width), torch.tensor([601.5]), random(1, length, 768)
        with torch.no_grad():
            assert_parity(model.unet(*arguments), reference(*arguments).sample)


def test_vae_equals_diffusers(model):
    reference = AutoencoderKL.from_pretrained(full_size.folder(), subfolder="vae")
    image, latents = random(1, 3, 256, 192).clamp(-1, 1), random(1, 4, 32, 24, scale=5.0)
    with torch.no_grad():
        assert_parity(model.vae.encode(image), reference.encode(image).latent_dist.parameters)
        assert_parity(model.vae.decode(latents), reference.decode(latents).sample)


@pytest.mark.parametrize("network", ["unet", "vae"])
def test_diffusers_reads_the_same_weights_from_the_single_file(model, network):
    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[network]
    config = str(full_size.folder())
    reference = kind.from_single_file(str(full_size.single_file()), config=config, subfolder=network)
    weights = reference.state_dict()
    mine = getattr(model, network).state_dict()
    assert weights.keys() == mine.keys()
    for name, tensor in mine.items():
        assert torch.equal(weights[name], tensor), name


MEMORY = """
import sys
from pathlib import Path

def anonymous_kilobytes():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.config import SD15
from training.stable_diffusion.checkpoint.networks import without_weights
without_weights(SD15)  # what torch imports at the first use is not weights
before = anonymous_kilobytes()
model = load_checkpoint(sys.argv[1])
total = sum(p.sum().item() for n in (model.text_encoder, model.unet, model.vae) for p in n.parameters())
print((anonymous_kilobytes() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells mapped from other memory")
def test_reading_every_weight_takes_no_second_copy():
    """Everything else in memory is the file itself, which the system may drop and read again."""
    command = [sys.executable, "-c", MEMORY, str(full_size.single_file())]
    root = Path(__file__).parents[1]
    megabytes = int(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)
    assert megabytes < 100
