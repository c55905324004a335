"""Proves the pocket model's training at a tiny size: all stages repeat bit for bit, also when they were stopped and
resumed; what they refuse; and that the model they leave opens like any published checkpoint."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from export.sd15_source import stated_by
from training.checkpoint import read, write
from training.data import Dataset
from training.errors import CheckpointError, TrainingError
from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.config import (
    SchedulerConfig,
    StableDiffusionConfig,
    TextEncoderConfig,
    UNetConfig,
    UNetLevel,
    VAEConfig,
)
from training.stable_diffusion.pocket import tokens
from training.stable_diffusion.pocket.ahead import Ahead
from training.stable_diffusion.pocket.autoencoder import VAEStage, encode, patched, posterior, standardise, to_input
from training.stable_diffusion.pocket.captions import known_words
from training.stable_diffusion.pocket.checkpoint import STATE, STATE_NAME, TEXT, VAE, begin_with
from training.stable_diffusion.pocket.command import STAGES
from training.stable_diffusion.pocket.config import (
    POCKET,
    DiffusionTraining,
    JudgeNetwork,
    JudgeTraining,
    OptimizerConfig,
    TextTraining,
    TrainConfig,
    VAETraining,
    pocket,
)
from training.stable_diffusion.pocket.denoiser import TABLE, Denoiser, initialise_texts, initialise_unet
from training.stable_diffusion.pocket.diffusion import diffusion_loss
from training.stable_diffusion.pocket.scenes import draw_pictures
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.train import Run, Trainer, optimizers
from training.stable_diffusion.text_encoder import CLIPTextModel
from training.stable_diffusion.unet import UNet2DConditionModel
from training.stable_diffusion.vae import AutoencoderKL

CPU = torch.device("cpu")
TINY = StableDiffusionConfig(
    text_encoder=TextEncoderConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2),
    unet=UNetConfig(
        levels=(UNetLevel(8, True), UNetLevel(16, False)),
        layers_per_block=1,
        num_attention_heads=2,
        cross_attention_dim=8,
        norm_num_groups=4,
    ),
    vae=VAEConfig(block_out_channels=(4, 4, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0),
    scheduler=POCKET.scheduler,
)
STEPS = 6
CONFIG = TrainConfig(
    vae=VAETraining(OptimizerConfig(STEPS, 2, 1e-3, 1, 2)),
    text=TextTraining(OptimizerConfig(STEPS, 2, 1e-3, 1, 2, matrix_learning_rate=2e-3)),
    diffusion=DiffusionTraining(
        OptimizerConfig(STEPS, 2, 1e-3, 1, 2, matrix_learning_rate=2e-3), block_size=4, blocks=2, block_steps=2
    ),
    judge=JudgeTraining(OptimizerConfig(STEPS, 4, 1e-3, 1, 2), JudgeNetwork(features=2, levels=2, hidden=8)),
    model=TINY,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sources() -> Sources:
    draws = np.random.default_rng(0)
    images = draws.integers(60, 256, (20, 1, 28, 28), np.uint8)
    dataset = Dataset("specks", images, np.arange(20, dtype=np.uint8) % 10, sha256="of these specks")
    return Sources.from_datasets(dataset, dataset)


@pytest.fixture(scope="module")
def ready(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose first two stages have ended."""
    folder = tmp_path_factory.mktemp("ready")
    assert train("vae", folder, sources)
    assert train("text", folder, sources)
    return folder


@pytest.fixture(scope="module")
def whole(ready: Path, sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    folder = copy_of(ready, tmp_path_factory.mktemp("whole"))
    assert train("diffusion", folder, sources)
    assert train("judge", folder, sources)
    return folder


def trainer(
    stage: str, folder: Path, sources: Sources, config: TrainConfig = CONFIG, deadline: float = math.inf
) -> Trainer:
    torch.set_num_threads(1)  # also where a fixture calls before the one above has
    return Trainer(STAGES[stage][0](config, sources, CPU, folder), Run(folder, True, deadline, progress=False))


def train(stage: str, folder: Path, sources: Sources, config: TrainConfig = CONFIG) -> bool:
    return trainer(stage, folder, sources, config).run()


def copy_of(run: Path, folder: Path) -> Path:
    return shutil.copytree(run, folder / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_stopped_at_every_step_ends_with_the_same_bytes_as_one_never_stopped(
    stage: str, ready: Path, whole: Path, sources: Sources, tmp_path: Path
) -> None:
    folder = copy_of(ready, tmp_path) if stage == "diffusion" else tmp_path
    for _ in range(STEPS - 1):
        assert not trainer(stage, folder, sources, deadline=time.monotonic()).run()
    assert train(stage, folder, sources)
    for name in (STATE_NAME.format(stage=stage), STAGES[stage][1]):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_the_number_of_steps_may_change_until_the_rate_falls(ready: Path, sources: Sources, tmp_path: Path) -> None:
    def with_steps(steps: int) -> TrainConfig:
        optimizer = dataclasses.replace(CONFIG.vae.optimizer, steps=steps)
        return dataclasses.replace(CONFIG, vae=dataclasses.replace(CONFIG.vae, optimizer=optimizer))

    for _ in range(3):
        assert not trainer("vae", tmp_path, sources, with_steps(9), time.monotonic()).run()
    assert train("vae", tmp_path, sources)
    assert (tmp_path / "vae.safetensors").read_bytes() == (ready / "vae.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="steps 6 there and 7 here"):
        trainer("vae", tmp_path, sources, with_steps(7))


def test_a_stage_does_not_resume_from_another_run(ready: Path, whole: Path, sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"belongs to another run \(seed 0 there and 1 here\)"):
        trainer("vae", ready, sources, dataclasses.replace(CONFIG, seed=1))
    others = dataclasses.replace(sources, sha256="of others")
    with pytest.raises(CheckpointError, match="other images, or another VAE or text encoder"):
        trainer("diffusion", whole, others)
    spoilt = copy_of(whole, tmp_path) / "vae-state.safetensors"
    tensors, metadata = read(spoilt, STATE)
    del tensors["optimizer.exp_avg.quant_conv.bias"]
    write(spoilt, STATE, tensors, metadata)
    with pytest.raises(CheckpointError, match="is not the state of a run"):
        trainer("vae", spoilt.parent, sources)


def test_diffusion_needs_a_vae_and_a_text_encoder_of_the_same_sizes(
    ready: Path, sources: Sources, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="does not exist; make one with: python -m training stable-diffusion"):
        trainer("diffusion", tmp_path, sources)
    model = dataclasses.replace(TINY, vae=dataclasses.replace(TINY.vae, block_out_channels=(4, 8, 8)))
    with pytest.raises(CheckpointError, match="has other sizes"):
        trainer("diffusion", ready, sources, dataclasses.replace(CONFIG, model=model))
    wider = dataclasses.replace(TINY.text_encoder, intermediate_size=24)
    with pytest.raises(CheckpointError, match=r"text\.safetensors has other sizes"):
        trainer(
            "diffusion",
            ready,
            sources,
            dataclasses.replace(CONFIG, model=dataclasses.replace(TINY, text_encoder=wider)),
        )
    lacking = copy_of(ready, tmp_path)
    (lacking / "text.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"text\.safetensors does not exist; make one with"):
        trainer("diffusion", lacking, sources)


def test_every_stage_shows_a_sheet(whole: Path) -> None:
    for stage in STAGES:
        (sheet,) = (whole / stage / "samples").glob("*.png") if (whole / stage).exists() else ()
        with Image.open(sheet) as picture:
            assert picture.mode == "RGB"


def test_the_model_opens_like_a_published_checkpoint_and_states_its_sizes_and_words(whole: Path) -> None:
    path = whole / "model.safetensors"
    assert stated_by(path) == (TINY, known_words())
    model = load_checkpoint(path, config=TINY)
    tensors, _ = read(whole / "diffusion-state.safetensors", STATE)
    average = {name.removeprefix("average.module."): tensor for name, tensor in tensors.items()}
    known = tokens.known_token_ids()  # of the others the state has no rows
    for name, network in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        for key, tensor in network.state_dict().items():
            assert torch.equal(tensor[known] if key == TABLE else tensor, average[f"{name}.{key}"]), key
    vae, _ = read(whole / "vae.safetensors", VAE)
    for key, tensor in model.vae.state_dict().items():
        assert torch.equal(tensor, vae[key]), key


def test_matrices_inside_the_network_learn_by_muon_and_all_else_by_adam() -> None:
    network = Denoiser(TINY)
    optimizer = OptimizerConfig(10, 1, 1e-3, 2, 4, matrix_learning_rate=2e-3)
    adam, muon = optimizers(network, optimizer)
    assert (adam.learning_rate, muon.learning_rate) == (1e-3, 2e-3)
    assert sorted(adam.names + muon.names) == sorted(name for name, _ in network.named_parameters())
    assert {"unet.mid_block.resnets.0.conv1.weight", "unet.mid_block.attentions.0.proj_in.weight"} <= set(muon.names)
    assert {"unet.conv_in.weight", "unet.conv_out.weight", "unet.time_embedding.linear_1.weight"} <= set(adam.names)
    assert "text_encoder.text_model.embeddings.token_embedding.weight" in adam.names
    (alone,) = optimizers(network, dataclasses.replace(optimizer, matrix_learning_rate=0.0))
    assert len(alone.names) == len(adam.names) + len(muon.names)


@pytest.mark.parametrize("share", [0.1, 0.0])
def test_a_part_of_the_network_learns_at_a_share_of_the_rates(share: float) -> None:
    network = Denoiser(TINY)
    optimizer = OptimizerConfig(10, 1, 1e-3, 2, 4, matrix_learning_rate=2e-3)
    *slow, adam, muon = optimizers(network, optimizer, {"text_encoder.": share})
    assert (adam.learning_rate, muon.learning_rate) == (1e-3, 2e-3)
    assert not any(name.startswith("text_encoder.") for name in adam.names + muon.names)
    assert [each.learning_rate for each in slow] == pytest.approx([1e-4, 2e-4] if share else [])
    assert all(name.startswith("text_encoder.") for each in slow for name in each.names)
    learning = [name for each in (*slow, adam, muon) for name in each.names]
    assert sorted(learning) == sorted(name for name, _ in network.named_parameters() if share or "unet." in name)


def test_the_text_encoder_starts_as_it_has_learned_to_read(ready: Path, sources: Sources) -> None:
    learned, _ = read(ready / "text.safetensors", TEXT)
    started = trainer("diffusion", ready, sources).network.get_submodule("text_encoder").state_dict()
    assert started.keys() == learned.keys()
    assert all(torch.equal(started[name], learned[name]) for name in learned)


def test_a_run_begins_with_the_networks_of_a_model(whole: Path, sources: Sources, tmp_path: Path) -> None:
    begin_with(whole / "model.safetensors", CONFIG, tmp_path)
    begun = trainer("diffusion", tmp_path, sources)
    average = {
        name.removeprefix("average.module."): tensor
        for name, tensor in read(whole / "diffusion-state.safetensors", STATE)[0].items()
    }
    for name, tensor in begun.network.state_dict().items():
        assert torch.equal(tensor, average[name]), name
    ours, theirs = (read(folder / "vae.safetensors", VAE)[0] for folder in (tmp_path, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert begun.run()
    (tmp_path / "unet.safetensors").unlink()
    with pytest.raises(CheckpointError, match="other images, or another VAE or text encoder"):
        trainer("diffusion", tmp_path, sources)


def test_a_model_of_other_sizes_is_no_beginning(whole: Path, tmp_path: Path) -> None:
    vae = dataclasses.replace(TINY.vae, block_out_channels=(4, 8, 8))
    wider = dataclasses.replace(CONFIG, model=dataclasses.replace(TINY, vae=vae))
    with pytest.raises(CheckpointError, match=r"block_out_channels \(4, 4, 8\) there and \(4, 8, 8\) here"):
        begin_with(whole / "model.safetensors", wider, tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        begin_with(tmp_path / "none.safetensors", CONFIG, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_latents_and_pictures_are_patched_at_the_same_places() -> None:
    """Each latent is the colour of its pixels, before and after, and every place comes from one of two neighbours."""
    factor, own = 4, torch.arange(3.0)[:, None, None, None]
    shares = set()
    for seed in range(20):
        latents, pictures = own.expand(3, 1, 5, 6), own.expand(3, 1, 5 * factor, 6 * factor)
        latents, pictures = patched(latents, pictures, torch.Generator().manual_seed(seed))
        assert torch.equal(latents.repeat_interleave(factor, 2).repeat_interleave(factor, 3), pictures)
        other = latents != own
        assert torch.equal(latents[other], own.roll(1, 0).expand_as(latents)[other])
        shares.add(float(other.float().mean()))
    assert min(shares) > 0
    assert len(shares) > 5


def test_as_many_steps_are_patched_and_halved_as_was_asked(sources: Sources, tmp_path: Path) -> None:
    stage = VAEStage(CONFIG, sources, CPU, tmp_path)
    latents, pictures = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 16, 16)
    treated = [stage.treated(latents, pictures, step) for step in range(400)]
    halved = [after for after, _ in treated if after.shape[-1] == 4]
    kept = [after for after, _ in treated if after is latents]
    torch.testing.assert_close(halved[0], F.avg_pool2d(latents, 2))
    assert [len(halved) / 400, len(kept) / 400] == pytest.approx([0.25, 0.5], abs=0.06)


@pytest.mark.parametrize("shares", [(-0.1, 0.2), (0.2, -0.1), (0.6, 0.5), (math.nan, 0.1)])
def test_shares_of_the_treatments_are_shares(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"share_patched is .* and share_halved is .* at most 1 together"):
        VAETraining(CONFIG.vae.optimizer, share_patched=shares[0], share_halved=shares[1])


def test_standardising_moves_the_latents_to_unit_scale_and_leaves_the_pictures(sources: Sources) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(TINY.vae).eval()
    pictures = draw_pictures(sources, 0, "test", 0, 8)
    with torch.no_grad():
        before = vae.decode(encode(vae, pictures, CPU))
        log_variance = posterior(vae, to_input(pictures))[1]
        latents = encode(vae, pictures, CPU)
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        standardise(vae, mean, std)
        latents = encode(vae, pictures, CPU)
        torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(vae.decode(latents), before, atol=1e-4, rtol=0)
        after = posterior(vae, to_input(pictures))[1]
        torch.testing.assert_close(after, log_variance - 2 * std.log()[:, None, None], atol=1e-4, rtol=1e-4)


def test_tokens_that_no_caption_has_are_zero_in_the_model(whole: Path) -> None:
    table = load_checkpoint(whole / "model.safetensors", config=TINY).text_encoder.state_dict()[TABLE]
    assert len(table) == TINY.text_encoder.vocab_size
    known = torch.zeros(len(table), dtype=torch.bool)
    known[tokens.known_token_ids()] = True
    assert not table[~known].any()
    assert table[known].any(dim=1).all()


def test_the_short_table_of_training_says_what_the_whole_one_says() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(TINY)
    initialise_texts(denoiser)
    initialise_unet(denoiser)
    weights = denoiser.weights()
    encoder = CLIPTextModel(TINY.text_encoder)
    encoder.load_state_dict(weights["text_encoder"])
    UNet2DConditionModel(TINY.unet).load_state_dict(weights["unet"])
    ids = tokens.encode(["a red sneaker on white", "a unicorn above a blue 7", ""])
    expected = encoder(ids, torch.zeros(1, TINY.text_encoder.hidden_size), torch.tensor(0))
    torch.testing.assert_close(denoiser.embed(ids), expected, atol=1e-6, rtol=0)
    assert (denoiser.embed(ids)[0] - denoiser.embed(ids)[1]).abs().max() > 0.01


def test_a_perfect_prediction_has_no_loss_and_any_error_counts_at_the_end_of_the_schedule() -> None:
    scheduler = SchedulerConfig(prediction_type="v_prediction", zero_terminal_snr=True)
    latents, noise = torch.randn(2, 3, 4, 4, 4).unbind()
    timesteps = torch.tensor([0, 500, 999])
    alphas_cumprod = scheduler.alphas_cumprod[timesteps].float()[:, None, None, None]
    v = alphas_cumprod.sqrt() * noise - (1 - alphas_cumprod).sqrt() * latents
    ids = torch.zeros(3, 77, dtype=torch.int64)

    class Says(torch.nn.Module):
        def __init__(self, error: torch.Tensor) -> None:
            super().__init__()
            self.error = error

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return v + self.error

    assert diffusion_loss(Says(torch.zeros(())), scheduler, 5.0, latents, ids, timesteps, noise) < 1e-10
    weights = torch.stack(
        [
            diffusion_loss(Says(torch.eye(3)[i][:, None, None, None]), scheduler, 5.0, latents, ids, timesteps, noise)
            for i in range(3)
        ]
    )
    expected = (5 * (1 - alphas_cumprod.flatten())).clamp(max=1) / 3
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-4)
    assert weights[2] == pytest.approx(1 / 3)


def test_things_are_made_ahead_and_in_any_order_the_same() -> None:
    made: list[int] = []

    def make(index: int) -> int:
        made.append(index)
        return index * index

    ahead = Ahead(make)
    assert [ahead(0), ahead(1), ahead(7), ahead(2)] == [0, 1, 49, 4]
    assert made[:3] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"steps": 2}, "steps is 2; it must be at least warmup_steps and decay_steps together, 3"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"matrix_learning_rate": -1.0}, "matrix_learning_rate is -1.0; it must be at least 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_impossible_numbers_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG.vae.optimizer, **change)


def test_the_rate_rises_stays_and_falls() -> None:
    shares = [OptimizerConfig(10, 1, 2.0, 2, 4).share_at(step) for step in range(10)]
    assert shares == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_the_configuration_survives_a_checkpoint() -> None:
    assert TrainConfig.from_json(pocket().to_json()) == pocket()
    with pytest.raises(ValueError, match="block_out_channels"):
        TrainConfig.from_json(pocket().to_json().replace("[16, 32, 64]", '"16, 32, 64"'))
    assert issubclass(CheckpointError, TrainingError)
