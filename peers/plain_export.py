"""A checkpoint's networks as ONNX, exported the way Optimum-ONNX 0.1.0 does it, and nothing done to them.

    python -m peers.plain_export CHECKPOINT_FOLDER OUT

That is: diffusers' modules, the tracing exporter (``dynamo=False``) with constant folding, opset 18, example inputs of
batch 2 with 16 tokens (77 for the text encoder), a scalar ``timestep``, and for graphs that protobuf cannot hold one
file of external data. Optimum-ONNX itself cannot be installed beside current releases of transformers, which it
forbids. Beside the graphs lie the tokenizer and two small files of settings, with which ``peers/picture.py`` draws
whole pictures.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import onnx
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from peers import picture
from peers.arguments import existing
from peers.checkpoint import tokenizer_file

OPSET = 18
BATCH, SIDE, TOKENS = 2, 64, 16
IMAGE_AXES = {0: "batch_size", 2: "height", 3: "width"}


class UNet(nn.Module):
    """The U-Net with a tensor for its output."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        output: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return output


class TextEncoder(nn.Module):
    """The text encoder with the two tensors that Optimum-ONNX gives names to."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        output = self.encoder(input_ids)
        return output.last_hidden_state, output.pooler_output


class Encoder(nn.Module):
    """The VAE's way from pixels to the parameters of the latents' distribution."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        parameters: Tensor = self.vae.encode(sample).latent_dist.parameters
        return parameters


class Decoder(nn.Module):
    """The VAE's way from latents to pixels."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        output: Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return output


def export_unet(folder: Path, path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    channels, side, width = unet.config.in_channels, unet.config.sample_size, unet.config.cross_attention_dim
    examples = {
        "sample": torch.rand(BATCH, channels, side or SIDE, side or SIDE),
        "timestep": torch.tensor(1.0),
        "encoder_hidden_states": torch.rand(BATCH, TOKENS, width),
    }
    axes = {"sample": IMAGE_AXES, "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"}}
    export(UNet(unet), examples, ["out_sample"], axes | {"out_sample": IMAGE_AXES}, path)


def export_decoder(folder: Path, path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    examples = {"latent_sample": torch.rand(BATCH, vae.config.latent_channels, SIDE, SIDE)}
    latent_axes = {0: "batch_size", 2: "latent_height", 3: "latent_width"}
    export(Decoder(vae), examples, ["sample"], {"latent_sample": latent_axes, "sample": IMAGE_AXES}, path)


def export_encoder(folder: Path, path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    examples = {"sample": torch.rand(BATCH, vae.config.in_channels, SIDE, SIDE)}
    latent_axes = {0: "batch_size", 2: "latent_height", 3: "latent_width"}
    export(
        Encoder(vae), examples, ["latent_parameters"], {"sample": IMAGE_AXES, "latent_parameters": latent_axes}, path
    )


def export_text_encoder(folder: Path, path: Path) -> None:
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    examples = {"input_ids": torch.zeros(BATCH, picture.TOKENS, dtype=torch.int32)}
    outputs = ["last_hidden_state", "pooler_output"]
    axes = {"input_ids": {0: "batch_size"}, **{name: {0: "batch_size"} for name in outputs}}
    export(TextEncoder(encoder), examples, outputs, axes, path)


def export(
    module: nn.Module, examples: dict[str, Tensor], outputs: list[str], axes: dict[str, dict[int, str]], path: Path
) -> None:
    """Trace one module; where the exporter has spread its weights over many files, gather them in one."""
    path.parent.mkdir()
    with tempfile.TemporaryDirectory(dir=path.parent) as traced, torch.no_grad():
        first = Path(traced) / path.name
        torch.onnx.export(
            module,
            (examples,),
            str(first),  # a Path would do, but not for graphs that need external data
            input_names=list(examples),
            output_names=outputs,
            dynamic_axes=axes,
            do_constant_folding=True,
            opset_version=OPSET,
            dynamo=False,
        )
        if len(os.listdir(traced)) == 1:
            first.replace(path)
            return
        model = onnx.load(first)
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=100)


def copy_settings(folder: Path, aside: Path) -> None:
    shutil.copyfile(tokenizer_file(folder), aside / picture.TOKENIZER)
    shutil.copyfile(folder / "scheduler" / "scheduler_config.json", aside / picture.SCHEDULER)
    shutil.copyfile(folder / "vae" / "config.json", aside / picture.VAE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m peers.plain_export", description=__doc__)
    parser.add_argument("folder", type=existing("unet/config.json", "vae/config.json"), help="a checkpoint's folder")
    parser.add_argument("out", type=Path, help="the folder to make")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; choose another name")
    aside = arguments.out.with_name(f".{arguments.out.name}.{os.getpid()}")
    try:
        aside.mkdir()
        export_unet(arguments.folder, aside / "unet" / "model.onnx")
        export_decoder(arguments.folder, aside / "vae_decoder" / "model.onnx")
        export_encoder(arguments.folder, aside / "vae_encoder" / "model.onnx")
        export_text_encoder(arguments.folder, aside / "text_encoder" / "model.onnx")
        copy_settings(arguments.folder, aside)
        aside.replace(arguments.out)
    except OSError as error:
        print(f"error: {arguments.out} cannot be made ({error})", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
