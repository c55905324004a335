"""The first stage of the pocket model: its VAE learns to rebuild scenes (Rombach et al. 2022, section 3.1).

Shapes: B batch, Z latent channels, H W pixels, h w latents.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.arrays import UInt8
from training.precision import autocast
from training.randomness import generator
from training.stable_diffusion.config import VAEConfig
from training.stable_diffusion.layers import ResnetBlock2D
from training.stable_diffusion.pocket import checkpoint
from training.stable_diffusion.pocket.ahead import Ahead
from training.stable_diffusion.pocket.config import TrainConfig, VAETraining
from training.stable_diffusion.pocket.scenes import draw_pictures
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.vae import AutoencoderKL

LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE = -30.0, 20.0
INITIAL_LOG_VARIANCE = -5.0
PREVIEWED, PREVIEWED_IN_A_ROW = 48, 16
MEASURED = 2048  # scenes whose latents give the channels' means and scales
ENCODED_AT_ONCE = 64


class VAEStage:
    """Learning to rebuild scenes."""

    name = "vae"

    def __init__(self, config: TrainConfig, sources: Sources, device: torch.device, folder: Path) -> None:
        self.shares: dict[str, float] = {}
        self.config, self.device, self.optimizer = config, device, config.vae.optimizer
        torch.manual_seed(config.seed)
        self.network = AutoencoderKL(config.model.vae)
        initialise(self.network)
        self.pictures = Ahead(lambda step: draw_pictures(sources, config.seed, "vae", step, self.optimizer.batch_size))
        self.sources, self.inputs = sources, sources.sha256
        self.file = folder / checkpoint.VAE_NAME

    def sections(self, config: TrainConfig) -> tuple[VAETraining, VAEConfig]:
        """The two parts of a configuration that this stage depends on: its training and its networks."""
        return config.vae, config.model.vae

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step, and its parts."""
        target = to_input(self.pictures(step)).to(self.device)
        with autocast(self.device, self.config.mixed_precision):
            mean, log_variance = posterior(self.network, target)
            noise = torch.randn(mean.shape, generator=generator(self.config.seed, "vae-noise", step)).to(self.device)
            latents, target = self.treated(mean + torch.exp(0.5 * log_variance) * noise, target, step)
            rebuilt = self.network.decode(latents).float()
        pixels = F.l1_loss(rebuilt, target) + F.mse_loss(rebuilt, target)
        edges = edge_loss(rebuilt, target)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = pixels + self.config.vae.edge_weight * edges + self.config.vae.kl_weight * kl
        return loss, {"pixels": pixels.item(), "edges": edges.item(), "kl": kl.item()}

    def treated(self, latents: Tensor, pictures: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Latents, (B, Z, h, w), and pictures, (B, 3, H, W), as they are, patched or halved, as a step's lot has it."""
        draws = generator(self.config.seed, "vae-treatment", step)
        lot = float(torch.rand((), generator=draws))
        if lot < self.config.vae.share_patched:
            return patched(latents, pictures, draws)
        if lot < self.config.vae.share_patched + self.config.vae.share_halved:
            return F.avg_pool2d(latents, 2), F.avg_pool2d(pictures, 2)
        return latents, pictures

    @torch.no_grad()
    def preview(self, average: AutoencoderKL) -> Tensor:
        """Rows of scenes, below each what becomes of them: uint8 (3, H rows, W columns)."""
        original = to_input(draw_pictures(self.sources, self.config.seed, "preview", 0, PREVIEWED)).to(self.device)
        rebuilt = average.decode(posterior(average, original)[0])
        rows: Tensor = torch.stack([to_pixels(original), to_pixels(rebuilt)]).unflatten(1, (-1, PREVIEWED_IN_A_ROW))
        return rows.permute(3, 1, 0, 4, 2, 5).flatten(4).flatten(1, 3)  # (3, rows · 2 · H, columns · W)

    def publish(self, average: AutoencoderKL, metadata: dict[str, str]) -> None:
        """Write the VAE for the stages after it once it has learned enough.

        Its latents are brought to scale 1 and each channel to mean 0, as diffusion wants them, by its own weights.
        Among each other the channels keep their scales, so that what matters less is drowned by noise sooner.
        """
        if int(metadata["step"]) < self.optimizer.steps:
            return
        pictures = draw_pictures(self.sources, self.config.seed, "latents", 0, MEASURED)
        latents = encode(average, pictures, self.device)
        finished = copy.deepcopy(average)
        mean = latents.mean((0, 2, 3))
        std = (latents - mean[:, None, None]).square().mean().sqrt().expand_as(mean)
        standardise(finished, mean.to(self.device), std.to(self.device))
        checkpoint.write_vae(self.file, finished, metadata)


def patched(latents: Tensor, pictures: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lay a rectangle of each picture's neighbour in the batch over it, and of its latents over its latents.

    Args:
        latents, pictures: (B, Z, h, w) and (B, 3, H, W).
        draws: where the rectangle comes from, which is the same for all.
    """
    size = torch.tensor(latents.shape[2:])
    begin = (torch.rand(2, generator=draws) * size).long()
    end = begin + 1 + (torch.rand(2, generator=draws) * (size - begin)).long()
    factor = pictures.shape[-1] // latents.shape[-1]
    inside = torch.zeros(latents.shape[2:], dtype=torch.bool, device=latents.device)
    inside[begin[0] : end[0], begin[1] : end[1]] = True
    wide = inside.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    return torch.where(inside, latents.roll(1, 0), latents), torch.where(wide, pictures.roll(1, 0), pictures)


@torch.no_grad()
def initialise(vae: AutoencoderKL) -> None:
    """Start so that colours get through: no layer makes them fainter, residual blocks pass their input on, and the
    latents' noise does not drown them. From PyTorch's own start it takes several times as many steps."""
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module.weight *= 3**0.5  # PyTorch's draws keep a third of the variance
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
    log_variances = {name: tensor.chunk(2)[1] for name, tensor in vae.quant_conv.state_dict().items()}
    log_variances["weight"] *= 0.1
    log_variances["bias"].fill_(INITIAL_LOG_VARIANCE)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: UInt8, device: torch.device) -> Tensor:
    """Pictures, uint8 (N, H, W, 3), to the means of their latents on the CPU, (N, Z, h, w)."""
    parts = to_input(pictures).split(ENCODED_AT_ONCE)
    return torch.cat([posterior(vae, part.to(device))[0].cpu() for part in parts])


def to_input(pictures: UInt8) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    sample: Tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return sample


def to_pixels(sample: Tensor) -> Tensor:
    """float32 in [-1, 1], or beyond, to uint8 on the CPU."""
    return ((sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def posterior(vae: AutoencoderKL, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latents, each (B, Z, h, w)."""
    mean, log_variance = vae.encode(sample).float().chunk(2, dim=1)
    return mean, log_variance.clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE)


def edge_loss(rebuilt: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbours, across and down."""
    error = rebuilt - target
    return 0.5 * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())


def standardise(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Change the convolutions on both sides of the latents so that z becomes (z - mean) / std, and images stay.

    Args:
        vae: is changed.
        mean: of the latents' channels, (Z,).
        std: their standard deviations, (Z,).
    """
    channels = len(mean)
    before, after = vae.quant_conv.state_dict(), vae.post_quant_conv.state_dict()  # views of the weights
    before["weight"][:channels] /= std[:, None, None, None]
    before["bias"][:channels] = (before["bias"][:channels] - mean) / std
    before["bias"][channels:] -= 2 * std.log()  # of the log-variances
    after["bias"] += after["weight"][:, :, 0, 0] @ mean
    after["weight"] *= std[None, :, None, None]
