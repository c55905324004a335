"""Folders that others exported, opened as bundles: those of diffusers' conversion script and those of optimum.

Both have one folder for each part, with ``model.onnx`` and perhaps its external data, and ``model_index.json`` above
them. What a manifest would say is read from the configuration files where there are any, and else from the graphs
themselves. There are no hashes to check; sizes, paths and the places of external data are held to as in a bundle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.adapter import ForeignGraph
from runtime.bundle import MODEL_INDEX, Bundle, Defaults, File, Latents, TextConditioning
from runtime.errors import BundleError
from runtime.foreign.conditioning import read_conditioning, read_tokenizer
from runtime.foreign.parts import MODEL, Part, count, read_config, read_json, read_part, said
from runtime.foreign.scheduler import read_scheduler
from runtime.foreign.signature import GraphSignature
from runtime.plan import is_finite_number
from runtime.samplers import SAMPLERS, find_sampler
from runtime.signatures import Tensors, text_signatures

logger = logging.getLogger(__name__)

SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
FAMILY = "stable-diffusion-1"
ROLES = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
OPTIONAL_ROLES = ("vae_encoder",)
NOT_RUN = ("safety_checker",)
# Parts of pipelines that are not Stable Diffusion 1 or 2.
OTHER_PIPELINES = ("text_encoder_2", "text_encoder_3", "transformer", "prior", "image_encoder")
# Those of Stable Diffusion 1, for folders that do not say.
LATENT_CHANNELS, FACTOR, SCALING_FACTOR, SAMPLE_SIZE = 4, 8, 0.18215, 64
GUIDANCE_SCALE, NUM_INFERENCE_STEPS = 7.5, 50
UNET_INPUTS = {4: (("sample", 4),), 9: (("sample", 4), ("mask", 1), ("masked_sample", 4))}


@dataclass(frozen=True)
class ForeignBundle(Bundle):
    """A bundle without a manifest.

    Attributes:
        tokenizer_json: what ``read`` gives for the tokenizer, which the folder may hold in another format.
    """

    tokenizer_json: bytes

    def read(self, file: File) -> bytes:
        if isinstance(self.conditioning, TextConditioning) and file == self.conditioning.tokenizer:
            return self.tokenizer_json
        return super().read(file)


def open_folder(folder: Path) -> Bundle:
    """Open a folder with a ``model_index.json``.

    Raises:
        BundleError: a part is missing, is none of Stable Diffusion's, or leaves the folder.
    """
    index = read_json(folder, MODEL_INDEX)
    check_pipeline(folder, index)
    parts = {role: read_part(folder, role) for role in ROLES if (folder / role).exists() or role not in OPTIONAL_ROLES}
    tokenizer_file, tokenizer_json = read_tokenizer(folder)
    conditioning = read_conditioning(folder, parts["unet"].signature, tokenizer_file, tokenizer_json)
    latents = read_latents(folder, parts["vae_decoder"].signature)
    channels = read_channels(folder, parts["unet"].signature)
    contract = text_signatures(conditioning, latents, channels)
    schedule, sampler = read_scheduler(read_json(folder, SCHEDULER_CONFIG), str(folder / SCHEDULER_CONFIG))
    return ForeignBundle(
        folder=folder,
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name) or "folder",
        family=FAMILY,
        provenance={
            "source": folder.resolve().name,
            "sha256": "",
            "licence": "unknown",
            "training": None,
            "exporter": {"pipeline": index.get("_class_name"), "diffusers": index.get("_diffusers_version")},
        },
        graphs={role: {"fp32": foreign_graph(folder, role, part, *contract[role])} for role, part in parts.items()},
        noise_schedule=schedule,
        pixels=None,
        latents=latents,
        unet_input=UNET_INPUTS[channels],
        conditioning=conditioning,
        defaults=read_defaults(folder, sampler, latents.factor),
        plans={},
        sha256=identity(folder, parts, tokenizer_json),
        tokenizer_json=tokenizer_json,
    )


def identity(folder: Path, parts: Mapping[str, Part], tokenizer_json: bytes) -> str:
    """What stands for the manifest's SHA-256 in a picture's metadata.

    It is the SHA-256 of the configuration and the tokenizer, and of the names and sizes of the networks' files, since
    nobody waits for gigabytes to be hashed before a picture is drawn. So it notices another network, unless that has
    files of the same sizes.
    """
    configs = [read_json(folder, name) for name in (MODEL_INDEX, SCHEDULER_CONFIG)]
    files = [[file.name, file.size] for part in parts.values() for file in (part.file, *part.external_data)]
    facts = {"configs": configs, "files": files, "tokenizer": hashlib.sha256(tokenizer_json).hexdigest()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_pipeline(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse other pipelines by name, and folders that hold no ONNX; say what is left out."""
    name = index.get("_class_name")
    # A part that a pipeline could have and has not is said as [null, null].
    named = [part for part, origin in index.items() if isinstance(origin, list) and any(origin)]
    other = [part for part in OTHER_PIPELINES if part in named or (folder / part).is_dir()]
    if other:
        raise BundleError(f"{folder} is a {name} with {', '.join(other)}; only Stable Diffusion 1 and 2 are run")
    missing = [
        f"{role}/{MODEL}" for role in ROLES if role not in OPTIONAL_ROLES and not (folder / role / MODEL).exists()
    ]
    if missing and list(folder.glob("unet/*.safetensors")) + list(folder.glob("unet/*.bin")):
        raise BundleError(
            f"{folder} holds weights for PyTorch and no ONNX; export it: python -m export sd15 {folder} --out FOLDER"
        )
    if missing:
        raise BundleError(f"{folder} lacks {', '.join(missing)}; it is no pipeline exported to ONNX, or not all of it")
    for part in NOT_RUN:
        if (folder / part).is_dir():
            logger.warning("%s: its %s is not run", folder, part)


def foreign_graph(folder: Path, role: str, part: Part, inputs: Tensors, outputs: Tensors) -> ForeignGraph:
    """A graph with the contract's inputs and outputs in front of its own."""
    native = part.signature
    names, known = [spec.name for spec in native.inputs], [spec.name for spec in inputs]
    required = [name for name in known if name not in ("extra_embeddings", "clip_skip")]
    if not set(required) <= set(names) <= set(known) or not native.outputs:
        raise BundleError(
            f"{folder / part.file.name} takes {', '.join(names)}; a {role} must take {', '.join(required)}"
        )
    given = [spec.name for spec in native.outputs]
    return ForeignGraph(
        file=part.file,
        external_data=part.external_data,
        inputs=inputs,
        outputs=outputs,
        providers=("any",),
        opset=native.opset,
        parity={},
        initializers={},
        native_inputs=tuple(native.inputs),
        native_output=outputs[0].name if outputs[0].name in given else given[0],
    )


def read_latents(folder: Path, decoder: GraphSignature) -> Latents:
    config, where = read_config(folder, "vae_decoder/config.json", "vae/config.json")
    widths = said(config, "block_out_channels", list, [0] * 4, where)
    factor = 1 << (len(widths) - 1) if 1 <= len(widths) <= 8 else FACTOR
    channels = count(config, "latent_channels", LATENT_CHANNELS, where)
    declared = decoder.inputs[0].shape if decoder.inputs else ()
    if len(declared) == 4 and isinstance(declared[1], int) and declared[1] > 0:
        channels = declared[1]
    scaling_factor = config.get("scaling_factor", SCALING_FACTOR)
    if not is_finite_number(scaling_factor) or not 1e-6 <= scaling_factor <= 1e6:
        raise BundleError(f"{where}: scaling_factor is {scaling_factor!r}; it must lie between 1e-06 and 1000000.0")
    return Latents(channels, factor, float(scaling_factor))


def read_channels(folder: Path, unet: GraphSignature) -> int:
    """Channels of the U-Net's sample: from its input or, where that leaves them open, from its first convolution."""
    samples = [spec for spec in unet.inputs if spec.name == "sample"]
    channels = samples[0].shape[1] if samples and len(samples[0].shape) == 4 else None
    if not isinstance(channels, int):
        sizes = [sizes for name, sizes in unet.weights.items() if name.endswith("conv_in.weight") and len(sizes) == 4]
        channels = sizes[0][1] if sizes else LATENT_CHANNELS
    if channels not in UNET_INPUTS:
        raise BundleError(f"{folder / 'unet'} takes {channels} channels; known are 4, and 9 for inpainting")
    return channels


def read_defaults(folder: Path, sampler: str, factor: int) -> Defaults:
    config, where = read_config(folder, "unet/config.json")
    side = factor * count(config, "sample_size", SAMPLE_SIZE, where, most=2**12)
    distilled = find_sampler(sampler)[0] in ("lcm", "tcd")  # into few steps, with the guidance built in
    steps = SAMPLERS[find_sampler(sampler)[0]].default_steps or NUM_INFERENCE_STEPS
    return Defaults(sampler, steps, 1.0 if distilled else GUIDANCE_SCALE, side, side)
