"""The third stage of the pocket model: text encoder and UNet learn together to find the scene in the noise.

Shapes: B batch, Z latent channels, h w latents, L tokens.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from training.ddpm.diffusion import gather
from training.paths import file_sha256
from training.precision import autocast
from training.randomness import array_generator, generator
from training.stable_diffusion.config import SchedulerConfig, StableDiffusionConfig
from training.stable_diffusion.pocket import checkpoint, tokens
from training.stable_diffusion.pocket.ahead import Ahead
from training.stable_diffusion.pocket.autoencoder import encode
from training.stable_diffusion.pocket.captions import describe
from training.stable_diffusion.pocket.config import DiffusionTraining, TrainConfig
from training.stable_diffusion.pocket.denoiser import Denoiser, initialise_unet
from training.stable_diffusion.pocket.preview import prompt_sheet
from training.stable_diffusion.pocket.scenes import draw_scenes
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.world import Scene

Block = tuple[list[Scene], Tensor]


def diffusion_loss(
    network: nn.Module,
    scheduler: SchedulerConfig,
    snr_gamma: float,
    latents: Tensor,
    input_ids: Tensor,
    timesteps: Tensor,
    noise: Tensor,
) -> Tensor:
    """Mean squared error of the predicted v (Salimans & Ho 2022), weighted by time.

    v's own weight is that of an error in x_0 times SNR + 1; here it is at most γ times (Hang et al. 2023, "Efficient
    Diffusion Training via Min-SNR Weighting", with SNR + 1 in place of SNR, since a schedule that ends without signal
    must not end without weight). As SNR + 1 is 1 / (1 - ᾱ), the weight is min(1, γ (1 - ᾱ)).
    """
    alphas_cumprod = scheduler.alphas_cumprod
    signal_scale = gather(alphas_cumprod.sqrt(), timesteps, latents)
    noise_scale = gather((1 - alphas_cumprod).sqrt(), timesteps, latents)
    predicted = network(signal_scale * latents + noise_scale * noise, timesteps.to(torch.float32), input_ids)
    error = predicted.float() - (signal_scale * noise - noise_scale * latents)
    weight = (snr_gamma * noise_scale.square()).clamp(max=1)
    loss: Tensor = (weight * error.square()).mean()
    return loss


class DiffusionStage:
    """Learning to draw what is asked for."""

    name = "diffusion"

    def __init__(self, config: TrainConfig, sources: Sources, device: torch.device, folder: Path) -> None:
        self.config, self.device, self.optimizer = config, device, config.diffusion.optimizer
        vae_file, text_file = folder / checkpoint.VAE_NAME, folder / checkpoint.TEXT_NAME
        self.model_file = folder / checkpoint.MODEL_NAME
        self.vae = checkpoint.load_vae(vae_file, config).to(device)
        torch.manual_seed(config.seed)
        self.network = Denoiser(config.model)
        checkpoint.load_text_encoder(text_file, self.network, config)
        start = folder / checkpoint.UNET_NAME
        if start.exists():
            checkpoint.load_unet(start, self.network, config)
        else:
            initialise_unet(self.network)
        self.shares = {"text_encoder.": config.diffusion.text_rate}
        files = [file for file in (vae_file, text_file, start) if file.exists()]
        learned = " ".join([sources.sha256, *map(file_sha256, files)])
        self.inputs = hashlib.sha256(learned.encode()).hexdigest()
        size, pairs = config.diffusion.block_size, config.diffusion.share_of_pairs
        self.drawn = Ahead(
            lambda index: draw_scenes(sources, config.seed, "diffusion", index, size, share_of_pairs=pairs)
        )
        self.blocks: dict[int, Block] = {}

    def sections(self, config: TrainConfig) -> tuple[DiffusionTraining, StableDiffusionConfig]:
        """The two parts of a configuration that this stage depends on: its training and its networks."""
        return config.diffusion, config.model

    def pool(self, step: int) -> list[Block]:
        """The blocks in use at a step, the oldest first."""
        first = step // self.config.diffusion.block_steps
        wanted = range(first, first + self.config.diffusion.blocks)
        self.blocks = {index: self.blocks.get(index) or self.block(index) for index in wanted}
        return list(self.blocks.values())

    def block(self, index: int) -> Block:
        """Scenes and their latents of unit scale."""
        scenes, pictures = self.drawn(index)
        return scenes, encode(self.vae, pictures, self.device) * self.config.model.vae.scaling_factor

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, token ids, timesteps and noise of one step."""
        config, size = self.config.diffusion, self.optimizer.batch_size
        pool = self.pool(step)
        draws, words = generator(self.config.seed, "step", step), array_generator(self.config.seed, "captions", step)
        chosen = torch.randint(len(pool) * config.block_size, (size,), generator=draws).tolist()
        places = [divmod(index, config.block_size) for index in chosen]
        latents = torch.stack([pool[block][1][place] for block, place in places])
        captions = [describe(pool[block][0][place], words).text for block, place in places]
        dropped = torch.rand(size, generator=draws) < config.caption_dropout
        input_ids = tokens.encode(["" if drop else text for drop, text in zip(dropped, captions, strict=True)])
        # One timestep from each of B equal parts of the schedule: the loss of a step depends less on luck.
        parts = (torch.arange(size) + torch.rand(size, generator=draws)) / size
        timesteps = (parts * self.config.model.scheduler.noise_schedule.num_train_timesteps).long()
        noise = torch.randn(latents.shape, generator=draws)
        return latents, input_ids, timesteps, noise

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step."""
        latents, input_ids, timesteps, noise = (tensor.to(self.device) for tensor in self.batch(step))
        scheduler, gamma = self.config.model.scheduler, self.config.diffusion.snr_gamma
        with autocast(self.device, self.config.mixed_precision):
            return diffusion_loss(self.network, scheduler, gamma, latents, input_ids, timesteps, noise), {}

    def preview(self, average: Denoiser) -> Tensor:
        """A sheet of pictures with their prompts: uint8 (3, H, W)."""
        return prompt_sheet(average, self.vae, self.config.model, self.config.seed)

    def publish(self, average: Denoiser, metadata: dict[str, str]) -> None:
        """Write the model as it stands."""
        checkpoint.write_model(self.model_file, average, self.vae, self.config.model, metadata)
