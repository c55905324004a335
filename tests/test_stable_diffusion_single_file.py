"""Proves that single files are read in every spelling the web has, without copying float32 weights, and that the rest
is told right: averaged weights, inpainting, prediction type, a VAE apart, and where it all came from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_files import original_layout, write_folder
from random_weights import SMALLEST, random_state
from reference_models import one_thread, part
from safetensors.torch import save_file

from training.noise_schedule import NoiseSchedule
from training.stable_diffusion.checkpoint import CheckpointError, load_checkpoint
from training.stable_diffusion.checkpoint.original_names import ema_name

pytestmark = pytest.mark.slow  # each is short, but together they are a quarter of the quick minute


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


CLIP, UNET, VAE = "cond_stage_model.transformer.", "model.diffusion_model.", "first_stage_model."


@pytest.fixture(scope="module")
def state():
    return random_state(SMALLEST)


@pytest.fixture(scope="module")
def tensors(state):
    return original_layout(SMALLEST, state)


def state_of(model):
    return {
        f"{network}.{name}": tensor
        for network in ("text_encoder", "unet", "vae")
        for name, tensor in getattr(model, network).state_dict().items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor), name


def renamed(tensors, old, new):
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


TRAINING_LEFTOVERS = {
    "betas": torch.ones(1000),
    "alphas_cumprod_prev": torch.ones(1000),
    "sqrt_recipm1_alphas_cumprod": torch.ones(1000),
    "posterior_mean_coef2": torch.ones(1000),
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32),
    "embedding_manager.string_to_param_dict.x": torch.ones(1, 32),
    "cond_stage_model.logit_scale": torch.tensor(4.6),
    "first_stage_model.loss.logvar": torch.tensor(0.0),
}
SPELLINGS = {
    "as published": lambda tensors: tensors,
    "without position_ids": lambda tensors: {n: t for n, t in tensors.items() if "position_ids" not in n},
    "without text_model": lambda tensors: renamed(tensors, f"{CLIP}text_model.", CLIP),
    "with vae": lambda tensors: renamed(tensors, VAE, "vae."),
    "nested": lambda tensors: {f"state_dict.{name}": tensor for name, tensor in tensors.items()},
    "with what training left": lambda tensors: tensors | TRAINING_LEFTOVERS,
    "attention of the VAE as linear layers": lambda tensors: {
        name: tensor[:, :, 0, 0] if ".attn_1." in name and tensor.ndim == 4 else tensor
        for name, tensor in tensors.items()
    },
    "projections of the UNet as linear layers": lambda tensors: {
        name: tensor[:, :, 0, 0] if ".proj_" in name and UNET in name and tensor.ndim == 4 else tensor
        for name, tensor in tensors.items()
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_weights(tmp_path, state, tensors, spelling):
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in SPELLINGS[spelling](tensors).items()}, path)
    assert_same(state_of(load_checkpoint(path, config=SMALLEST)), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, state, tensors, dtype):
    path = tmp_path / "model.safetensors"
    save_file({n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}, path)
    assert_same(state_of(load_checkpoint(path, config=SMALLEST)), {n: t.to(dtype).float() for n, t in state.items()})


@pytest.fixture(scope="module")
def published(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("single") / "pocket.safetensors"
    save_file(tensors, path)
    return path


def test_networks_are_ready_to_use(published):
    model = load_checkpoint(published, config=SMALLEST)
    for network in (model.text_encoder, model.unet, model.vae):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    text = model.text_encoder(torch.zeros(1, 77, dtype=torch.int64), torch.zeros(1, 8), torch.tensor(0))
    noise = model.unet(torch.zeros(1, 4, 8, 8), torch.tensor([999.0]), text)
    assert model.vae.decode(noise).shape == (1, 3, 16, 16)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells which file memory belongs to")
def test_weights_lie_in_the_file(published):
    model = load_checkpoint(published, config=SMALLEST)
    ranges = [
        [int(address, 16) for address in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(published))
    ]
    for name, tensor in state_of(model).items():
        assert any(start <= tensor.data_ptr() < end for start, end in ranges), name


def test_changed_weights_do_not_change_the_file(published):
    before = published.read_bytes()
    for tensor in state_of(load_checkpoint(published, config=SMALLEST)).values():
        tensor.zero_()
    assert published.read_bytes() == before


def test_averaged_weights_are_taken_only_when_asked_for(tmp_path, state, tensors):
    averaged = {ema_name(name): tensor + 1 for name, tensor in tensors.items() if name.startswith(UNET)}
    path = tmp_path / "full.safetensors"
    save_file(tensors | averaged | TRAINING_LEFTOVERS, path)
    assert_same(state_of(load_checkpoint(path, config=SMALLEST)), state)
    model = load_checkpoint(path, use_ema=True, config=SMALLEST)
    assert_same(state_of(model), {n: t + 1 if n.startswith("unet.") else t for n, t in state.items()})
    assert model.provenance.use_ema


def test_averaged_weights_that_are_not_there_are_missed(tmp_path, published, tensors):
    with pytest.raises(CheckpointError, match="holds no averaged"):
        load_checkpoint(published, use_ema=True, config=SMALLEST)
    only = {ema_name(name) if name.startswith(UNET) else name: tensor for name, tensor in tensors.items()}
    save_file(only, tmp_path / "averaged.safetensors")
    with pytest.raises(CheckpointError, match=r"averaged \(EMA\) weights only; ask for them with use_ema"):
        load_checkpoint(tmp_path / "averaged.safetensors", config=SMALLEST)


def test_inpainting_is_known_by_its_nine_channels(tmp_path, published):
    assert not load_checkpoint(published, config=SMALLEST).inpainting
    config = replace(SMALLEST, unet=replace(SMALLEST.unet, in_channels=9))
    path = tmp_path / "inpainting.safetensors"
    save_file(original_layout(config, random_state(config)), path)
    model = load_checkpoint(path, config=SMALLEST)
    assert model.inpainting
    assert model.config.unet.in_channels == model.unet.conv_in.in_channels == 9


def test_the_schedule_is_that_of_training_and_the_caller_may_know_better(published):
    scheduler = load_checkpoint(published, config=SMALLEST).config.scheduler
    assert scheduler.noise_schedule == NoiseSchedule(1000, 0.00085, 0.012, "scaled_linear")
    assert (scheduler.prediction_type, scheduler.zero_terminal_snr, scheduler.steps_offset) == ("epsilon", False, 1)
    other = load_checkpoint(published, prediction_type="v_prediction", zero_terminal_snr=True, config=SMALLEST)
    assert (other.config.scheduler.prediction_type, other.config.scheduler.zero_terminal_snr) == ("v_prediction", True)
    with pytest.raises(CheckpointError, match="prediction_type 'velocity' is unknown; choose epsilon or v_prediction"):
        load_checkpoint(published, prediction_type="velocity", config=SMALLEST)


def test_provenance_names_the_file_and_its_hash(published):
    provenance = load_checkpoint(str(published), config=SMALLEST).provenance
    assert (provenance.source, provenance.layout, provenance.files) == (
        "pocket.safetensors",
        "single-file",
        (published,),
    )
    assert provenance.sha256 == hashlib.sha256(published.read_bytes()).hexdigest()


def other_vae(state, tmp_path, kind):
    """A VAE with all weights one larger, in one of the layouts in which VAEs are passed around."""
    changed = {n: t + 1 if n.startswith("vae.") else t for n, t in state.items()}
    whole = {name: tensor.contiguous() for name, tensor in original_layout(SMALLEST, changed).items()}
    original = {name: tensor for name, tensor in whole.items() if name.startswith(VAE)}
    if kind == "model folder":
        return write_folder(tmp_path / "other", SMALLEST, changed)
    if kind == "vae folder":
        return write_folder(tmp_path / "other", SMALLEST, changed) / "vae"
    if kind == "diffusers file":
        return write_folder(tmp_path / "other", SMALLEST, changed) / "vae" / "diffusion_pytorch_model.safetensors"
    path = tmp_path / ("vae.ckpt" if kind == "ckpt" else "vae.safetensors")
    if kind == "ckpt":
        bare = {name.removeprefix(VAE): tensor for name, tensor in original.items()}
        torch.save({"state_dict": bare | {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.ones(())}}, path)
    else:
        saved = {"whole file": whole, "with prefix": original, "without prefix": renamed(original, VAE, "")}
        save_file(saved[kind], path)
    return path


@pytest.mark.parametrize(
    "kind", ["model folder", "whole file", "vae folder", "diffusers file", "ckpt", "with prefix", "without prefix"]
)
def test_a_vae_apart_replaces_the_own_one(tmp_path, published, state, kind):
    path = other_vae(state, tmp_path, kind)
    model = load_checkpoint(published, vae=path, config=SMALLEST)
    assert_same(state_of(model), {n: t + 1 if n.startswith("vae.") else t for n, t in state.items()})
    assert len(model.provenance.files) == 2
    assert model.provenance.sha256 != load_checkpoint(published, config=SMALLEST).provenance.sha256


def test_a_checkpoint_without_vae_can_be_completed(tmp_path, state, tensors):
    path = tmp_path / "no-vae.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(VAE)}, path)
    with pytest.raises(CheckpointError, match=f"{len(part(state, 'vae'))} missing"):
        load_checkpoint(path, config=SMALLEST)
    model = load_checkpoint(path, vae=other_vae(state, tmp_path, "without prefix"), config=SMALLEST)
    assert torch.equal(model.vae.quant_conv.bias, state["vae.quant_conv.bias"] + 1)
