"""The way from a path to networks with weights: read to ``Contents``, whatever the layout, then fill the networks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from training.errors import CheckpointError
from training.paths import exists, file_sha256
from training.stable_diffusion.checkpoint import hub
from training.stable_diffusion.checkpoint.contents import Contents, Layout
from training.stable_diffusion.checkpoint.diffusers_folder import read_folder, read_vae_folder
from training.stable_diffusion.checkpoint.networks import fill, without_weights
from training.stable_diffusion.checkpoint.single_file import read_single_file, read_vae_file
from training.stable_diffusion.checkpoint.tensor_files import ENDINGS
from training.stable_diffusion.config import SD15, StableDiffusionConfig
from training.stable_diffusion.text_encoder import CLIPTextModel
from training.stable_diffusion.unet import UNet2DConditionModel
from training.stable_diffusion.vae import AutoencoderKL


@dataclass(frozen=True)
class Provenance:
    """Where weights came from.

    Attributes:
        source: the file's or folder's name, or the name on the model hub with the revision that was fetched.
        layout: "single-file" or "diffusers-folder".
        files: the files that were read; the last ones are those of a VAE that was given apart.
        use_ema: whether the UNet's weights are the averaged ones of a file that has both.
        vae_files: the last ones of ``files``, if they hold a VAE that was given apart.
    """

    source: str
    layout: Layout
    files: tuple[Path, ...]
    use_ema: bool
    vae_files: tuple[Path, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all files, as ``files_sha256`` takes it; when first asked for, since it reads everything."""
        return files_sha256(self.files)


@dataclass(frozen=True)
class StableDiffusion:
    """A model: three networks with weights, in evaluation mode, and what one must know to sample from them.

    Attributes:
        config: sizes, and in ``config.scheduler`` the noise schedule and what the UNet predicts.
        text_encoder: token ids -> text embeddings.
        unet: noisy latents, time and text embeddings -> prediction.
        vae: pixels <-> latents.
        provenance: where the weights came from.
    """

    config: StableDiffusionConfig
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    provenance: Provenance

    @property
    def inpainting(self) -> bool:
        """Whether the UNet is given a mask and the masked latents beside the noisy latents."""
        return self.config.inpainting


def load_checkpoint(
    source: str | Path,
    *,
    use_ema: bool = False,
    vae: Path | None = None,
    prediction_type: str | None = None,
    zero_terminal_snr: bool = False,
    config: StableDiffusionConfig = SD15,
) -> StableDiffusion:
    """Open a checkpoint.

    Args:
        source: a single file, a folder in diffusers' layout, or ``OWNER/NAME`` on the model hub.
        use_ema: of a single file with two sets of UNet weights, take the averaged ones.
        vae: a file or folder whose VAE replaces the checkpoint's.
        prediction_type: what the UNet predicts, where it is not what the folder's scheduler says or, for single files,
            which cannot say, not "epsilon".
        zero_terminal_snr: the model was trained on betas rescaled to zero terminal SNR; a folder can say so itself.
        config: sizes of the model in a single file; a folder states its own.

    Raises:
        CheckpointError: it cannot be read, is damaged, incomplete or another model; one line that says which.
    """
    path, name = locate(source)
    if use_ema and path.is_dir():
        raise CheckpointError(f"{path} is a folder, which holds one set of weights; use_ema is for single files")
    contents = read_folder(path) if path.is_dir() else read_single_file(path, config, use_ema)
    vae_files: tuple[Path, ...] = ()
    if vae is not None:
        other = read_vae(vae, contents.config)
        contents, vae_files = contents.with_vae(other), other.files
    config = with_scheduler(contents.config, prediction_type, zero_terminal_snr)
    networks = without_weights(config)
    fill(networks, str(path) if vae is None else f"{path} with {vae}", contents.names, contents.tensors)
    return StableDiffusion(
        config=config,
        text_encoder=networks.text_encoder,
        unet=networks.unet,
        vae=networks.vae,
        provenance=Provenance(name, contents.layout, contents.files, use_ema, vae_files),
    )


def locate(source: str | Path) -> tuple[Path, str]:
    """Where the checkpoint is, and what to call it.

    Raises:
        CheckpointError: nowhere.
    """
    path = Path(source)
    if exists(path):
        return path, path.resolve().name
    if isinstance(source, str) and hub.NAME.fullmatch(source) and path.suffix not in ENDINGS:
        folder = hub.fetch(source)
        return folder, f"{source}@{folder.name}"
    raise CheckpointError(f"{source} does not exist")


def read_vae(path: Path, config: StableDiffusionConfig) -> Contents:
    return read_vae_folder(path, config) if exists(path) and path.is_dir() else read_vae_file(path, config)


def with_scheduler(
    config: StableDiffusionConfig, prediction_type: str | None, zero_terminal_snr: bool
) -> StableDiffusionConfig:
    """The configuration with what the caller knows better than the checkpoint.

    Raises:
        CheckpointError: there is no such prediction type.
    """
    changes: dict[str, Any] = {} if prediction_type is None else {"prediction_type": prediction_type}
    if zero_terminal_snr:
        # Only trailing timesteps begin at the last one, which is what such a model was trained for (Lin et al. 2024,
        # section 3.3).
        changes |= {"zero_terminal_snr": True, "timestep_spacing": "trailing"}
    try:
        return replace(config, scheduler=replace(config.scheduler, **changes))
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def files_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 in hexadecimal: of a file; of several files, that of their digests in order, one on a line."""
    digests = [file_sha256(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
