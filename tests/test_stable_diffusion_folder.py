"""Proves that folders are read as diffusers and transformers save them, in full and half precision, whole and in
shards, with the names of old releases; and that their configurations are believed only as far as implemented."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from checkpoint_files import original_layout, write_folder
from diffusers import DDIMScheduler, PNDMScheduler
from random_weights import SMALLEST, random_state
from reference_models import part, reference_text_encoder, reference_unet, reference_vae
from safetensors.torch import load_file, save_file

from training.stable_diffusion.checkpoint import CheckpointError, load_checkpoint

pytestmark = pytest.mark.slow  # each is short, but together they are a quarter of the quick minute


@pytest.fixture(scope="module")
def state():
    return random_state(SMALLEST)


@pytest.fixture(scope="module")
def written(tmp_path_factory, state):
    """A folder as the first releases of diffusers wrote it."""
    return write_folder(tmp_path_factory.mktemp("folder") / "pocket", SMALLEST, state)


@pytest.fixture
def folder(tmp_path, written):
    """A copy to change."""
    return shutil.copytree(written, tmp_path / "pocket")


def assert_holds(folder, state):
    model = load_checkpoint(folder)
    for network in ("text_encoder", "unet", "vae"):
        found = getattr(model, network).state_dict()
        expected = part(state, network)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
    return model


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_tensors(path, rename):
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path)


def test_first_releases_and_their_facts(written, state):
    model = assert_holds(written, state)
    assert model.config == SMALLEST
    assert (model.provenance.source, model.provenance.layout) == ("pocket", "diffusers-folder")
    assert [file.parent.name for file in model.provenance.files] == ["text_encoder", "unet", "vae"]
    assert len(model.provenance.sha256) == 64


@pytest.mark.parametrize(
    ("saving", "halved"),
    [({}, False), ({"variant": "fp16"}, True), ({"max_shard_size": "150KB"}, False),
     ({"variant": "fp16", "max_shard_size": "100KB"}, True)],
    ids=["whole", "fp16", "sharded", "fp16 sharded"],
)  # fmt: skip
def test_what_the_libraries_save_today(tmp_path, state, saving, halved):
    networks = {
        "text_encoder": reference_text_encoder(SMALLEST.text_encoder, part(state, "text_encoder")),
        "unet": reference_unet(SMALLEST.unet, part(state, "unet")),
        "vae": reference_vae(SMALLEST.vae, part(state, "vae")),
    }
    for name, network in networks.items():
        (network.half() if halved else network).save_pretrained(tmp_path / name, **saving)
    PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1).save_pretrained(
        tmp_path / "scheduler"
    )
    model = assert_holds(tmp_path, {n: t.half().float() if halved else t for n, t in state.items()})
    assert model.config == SMALLEST
    assert (len(model.provenance.files) > 3) == ("max_shard_size" in saving)


def test_old_names_of_the_attention_in_the_vae(folder, state):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name):
        for new, older in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{older}.")
        return name

    rename_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors", rename)
    assert_holds(folder, state)


def test_text_encoder_with_position_ids_or_without_its_inner_name(folder, state):
    path = folder / "text_encoder" / "model.safetensors"
    whole = load_file(path)
    save_file(whole | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    assert_holds(folder, state)
    save_file({name.removeprefix("text_model."): tensor for name, tensor in whole.items()}, path)
    assert_holds(folder, state)


def test_weights_that_torch_saved(folder, state):
    for network, stem, old in (("text_encoder", "model", "pytorch_model"), ("unet", *["diffusion_pytorch_model"] * 2)):
        path = folder / network / f"{stem}.safetensors"
        torch.save(load_file(path), folder / network / f"{old}.bin")
        path.unlink()
    assert_holds(folder, state)


def test_folder_and_single_file_give_the_same_weights(tmp_path, written, state):
    save_file(original_layout(SMALLEST, state), tmp_path / "pocket.safetensors")
    single, folder = load_checkpoint(tmp_path / "pocket.safetensors", config=SMALLEST), load_checkpoint(written)
    assert single.config == folder.config
    for network in ("text_encoder", "unet", "vae"):
        weights = getattr(folder, network).state_dict()
        for name, tensor in getattr(single, network).state_dict().items():
            assert torch.equal(tensor, weights[name])


def test_the_scheduler_says_what_the_unet_predicts(folder):
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=0,
    ).save_pretrained(folder / "scheduler")
    scheduler = load_checkpoint(folder).config.scheduler
    assert (scheduler.prediction_type, scheduler.zero_terminal_snr) == ("v_prediction", True)
    assert (scheduler.timestep_spacing, scheduler.steps_offset, scheduler.set_alpha_to_one) == ("trailing", 0, True)
    assert load_checkpoint(folder, prediction_type="epsilon").config.scheduler.prediction_type == "epsilon"
    shutil.rmtree(folder / "scheduler")
    assert load_checkpoint(folder).config == SMALLEST


def test_scaling_factor_of_the_vae(folder):
    edit(folder / "vae" / "config.json", scaling_factor=0.25)
    assert load_checkpoint(folder).config.vae.scaling_factor == 0.25


def test_number_of_heads_under_its_right_name(folder):
    edit(folder / "unet" / "config.json", attention_head_dim=8, num_attention_heads=4)
    assert load_checkpoint(folder).config.unet.num_attention_heads == 4


UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (UNET, {"cross_attention_dim": 1024}, "cross_attention_dim is 1024, so this is Stable Diffusion 2; only"),
        (UNET, {"cross_attention_dim": 2048}, "so this is Stable Diffusion XL; only Stable Diffusion 1.x is supported"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "is a Stable Diffusion XL model"),
        ("model_index.json", {"_class_name": "StableDiffusionInstructPix2PixPipeline"}, "is an InstructPix2Pix model"),
        (UNET, {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'; None, as in Stable Diffusion 1.x"),
        (UNET, {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
        (UNET, {"in_channels": 7}, "in_channels is 7; it must be 4"),
        (UNET, {"in_channels": "4"}, "in_channels is '4'; a whole number"),
        (UNET, {"block_out_channels": [8, 10**12]}, "block_out_channels is .*; a list of whole numbers"),
        (UNET, {"layers_per_block": 10**9}, "layers_per_block is 1000000000; a whole number from 1 to 100"),
        (UNET, {"block_out_channels": [16]}, "one number for each of the 2 down_block_types"),
        (UNET, {"down_block_types": ["AttnDownBlock2D"] * 2}, "a list of CrossAttnDownBlock2D or DownBlock2D"),
        (UNET, {"up_block_types": ["UpBlock2D"] * 2}, "the mirror image of down_block_types"),
        (UNET, {"attention_head_dim": [5, 10, 20]}, r"attention_head_dim is \[5, 10, 20\]; a whole number"),
        (VAE, {"down_block_types": ["DownEncoderBlock2D"]}, "one block for each of the 2 block_out_channels"),
        (VAE, {"shift_factor": 0.1}, "shift_factor is 0.1; None, as in Stable Diffusion 1.x, is needed"),
        (VAE, {"scaling_factor": -1}, "scaling_factor is -1; a number above 0"),
        (TEXT, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; 'quick_gelu', as in Stable Diffusion 1.x, is needed"),
        (TEXT, {"hidden_size": 48}, "hidden_size is 48, but the UNet's cross_attention_dim is 8"),
        (SCHEDULER, {"prediction_type": ["epsilon"]}, r"prediction_type \['epsilon'\] is unknown"),
        (SCHEDULER, {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule 'squaredcos_cap_v2' is unknown"),
        (SCHEDULER, {"trained_betas": [0.1]}, r"trained_betas is \[0.1\]; None"),
        (SCHEDULER, {"steps_offset": -1}, "steps_offset is -1; a whole number from 0"),
    ],
)
def test_what_is_not_implemented_is_refused(folder, file, changes, message):
    edit(folder / file, **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "\udcff", "[" * 100_000, "null"])
def test_configurations_that_are_none_are_refused(folder, content):
    (folder / UNET).write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"unet/config\.json is (not|no)"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (UNET, r"unet/config\.json is missing"),
        ("vae/diffusion_pytorch_model.safetensors", "vae holds no weights; looked for diffusion_pytorch_model.safeten"),
    ],
)
def test_missing_files_are_named(folder, gone, message):
    (folder / gone).unlink()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["../unet.safetensors", "/etc/passwd", "a/b.safetensors", "..", "C:\\x", "x\0"])
def test_an_index_cannot_point_outside_its_folder(folder, name):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(folder / "unet.safetensors")
    index = {"weight_map": {"conv_in.weight": name}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="a shard must be a file in the same folder"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "lists no shards"),
        ({"weight_map": []}, "lists no shards"),
        ({"weight_map": {"conv_in.weight": "gone.safetensors"}}, "gone.safetensors does not exist"),
    ],
)
def test_an_index_must_list_what_is_there(folder, index, message):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_averaged_weights_are_a_matter_of_single_files(written):
    with pytest.raises(CheckpointError, match="use_ema is for single files"):
        load_checkpoint(written, use_ema=True)
