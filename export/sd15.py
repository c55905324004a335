"""Exporting Stable Diffusion 1.5: a checkpoint in, a bundle that draws from text out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from export.bundle import (
    check_name,
    default_plans,
    describe_file,
    describe_schedule,
    export_graph,
    exporter_versions,
    write_manifest,
)
from export.conformance import Conformance
from export.sd15_graphs import SPECS, modules
from export.sd15_picture import add_text_cases
from export.staging import replacing
from export.tokenizer import TOKENIZER, TextTokenizer, find_tokenizer
from runtime.bundle import CONFORMANCE
from runtime.plan import NoiseSchedule
from training.stable_diffusion.checkpoint import Provenance, StableDiffusion, load_checkpoint
from training.stable_diffusion.checkpoint.load import files_sha256
from training.stable_diffusion.config import SD15, SchedulerConfig, StableDiffusionConfig
from training.stable_diffusion.lora import LoraFile, apply_loras

FAMILY = "stable-diffusion-1"
DEFAULT_SAMPLER, DEFAULT_STEPS, DEFAULT_GUIDANCE = "dpmpp_2m_karras", 20, 7.5
SAMPLERS = (DEFAULT_SAMPLER, "ddim", "pndm")
LATENTS = 64  # a side of the default picture, the size that the model was trained at
CONFORMANCE_LATENTS = (4, 16, 16)
UNKNOWN_LICENCE = "unknown"


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported, ready to be traced.

    Attributes:
        model: the networks, with all LoRAs merged.
        tokenizer: of its prompts.
        provenance: the manifest's.
        known_words: of a model of a small world, or None.
    """

    model: StableDiffusion
    tokenizer: TextTokenizer
    provenance: dict[str, Any]
    known_words: tuple[str, ...] | None


def noise_schedule(scheduler: SchedulerConfig) -> NoiseSchedule:
    """The schedule of training, and how the model is meant to be sampled."""
    return NoiseSchedule(
        alphas_cumprod=scheduler.alphas_cumprod.numpy(),
        prediction_type=scheduler.prediction_type,
        final_alpha_cumprod=scheduler.final_alpha_cumprod,
        timestep_spacing=scheduler.timestep_spacing,
        steps_offset=scheduler.steps_offset,
    )


def describe_provenance(
    provenance: Provenance, config: StableDiffusionConfig, loras: Sequence[dict[str, Any]], licence: str
) -> dict[str, Any]:
    """The manifest's ``provenance``: whose weights, and what was done to them."""
    apart = provenance.vae_files
    own = [path for path in provenance.files if path not in apart]
    training = {
        "config": dataclasses.asdict(config),
        "layout": provenance.layout,
        "use_ema": provenance.use_ema,
        "vae": {"source": apart[0].name, "sha256": files_sha256(apart)} if apart else None,
        "loras": list(loras),
    }
    return {
        "source": provenance.source,
        "sha256": files_sha256(own),
        "licence": licence,
        "training": training,
        "exporter": exporter_versions(),
    }


def describe(source: Source, name: str, schedule: NoiseSchedule) -> dict[str, Any]:
    """The manifest without graphs, plans and the tokenizer's file."""
    config = source.model.config
    text, vae = config.text_encoder, config.vae
    side = LATENTS * vae.factor
    inpainting = [("mask", 1), ("masked_sample", vae.latent_channels)] if config.inpainting else []
    betas = dataclasses.asdict(config.scheduler.noise_schedule)
    return {
        "name": name,
        "family": FAMILY,
        "provenance": source.provenance,
        "noise_schedule": describe_schedule(
            schedule, betas | {"zero_terminal_snr": config.scheduler.zero_terminal_snr}
        ),
        "pixels": None,
        "latents": {
            "channels": vae.latent_channels,
            "factor": vae.factor,
            "scaling_factor": vae.scaling_factor,
        },
        "unet_input": [
            {"name": part, "channels": channels} for part, channels in [("sample", vae.latent_channels), *inpainting]
        ],
        "conditioning": {
            "kind": "text",
            "max_length": text.max_position_embeddings,
            "bos_token_id": source.tokenizer.bos_token_id,
            "eos_token_id": source.tokenizer.eos_token_id,
            "pad_token_id": source.tokenizer.pad_token_id,
            "vocab_size": text.vocab_size,
            "embedding_dim": text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers,
            "clip_skip": 0,
            "known_words": None if source.known_words is None else list(source.known_words),
        },
        "defaults": {
            "sampler": DEFAULT_SAMPLER,
            "num_inference_steps": min(DEFAULT_STEPS, schedule.num_train_timesteps),
            "guidance_scale": DEFAULT_GUIDANCE,
            "width": side,
            "height": side,
        },
    }


def export_sd15(
    source: str | Path,
    target: Path,
    *,
    precision: str = "fp32",
    vae: Path | None = None,
    loras: Sequence[LoraFile] = (),
    use_ema: bool = False,
    prediction_type: str | None = None,
    zero_terminal_snr: bool = False,
    config: StableDiffusionConfig = SD15,
    tokenizer: Path | None = None,
    known_words: Sequence[str] | None = None,
    licence: str = UNKNOWN_LICENCE,
    accepted: float | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Make a bundle of a Stable Diffusion 1.x checkpoint.

    Args:
        source: a single file, a folder in diffusers' layout, or ``OWNER/NAME`` on the model hub.
        target: the bundle's folder, whose name becomes the bundle's. A bundle that is there is replaced in one step
            at the very end.
        precision: "fp32" or "fp16".
        vae: a file or folder whose VAE replaces the checkpoint's.
        loras: are merged into text encoder and UNet.
        use_ema: of a single file with two sets of UNet weights, take the averaged ones.
        prediction_type: what the UNet predicts, where the checkpoint does not say or says otherwise.
        zero_terminal_snr: the model was trained with no signal left at the last timestep.
        config: sizes of the model in a single file; a folder states its own.
        tokenizer: a ``tokenizer.json``; without it the folder's own, or CLIP's.
        known_words: every word of a model of a small world.
        licence: of the weights.
        accepted: a bound on the difference from PyTorch to accept where it is looser than the usual one; the manifest
            tells.
        report: is called with a line for people now and then.

    Raises:
        CheckpointError: a checkpoint, VAE or LoRA is missing, damaged, or of another model.
        RequestError: no plan can be made for this noise schedule.
        ExportError: a graph differs from PyTorch by more than the bound, or the target cannot be written. Nothing is
            left behind.
    """
    name = target.resolve().name
    check_name(name)
    begun = time.monotonic()
    model = load_checkpoint(
        source,
        use_ema=use_ema,
        vae=vae,
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        config=config,
    )
    merged = apply_loras(model, loras) if loras else []
    folder = model.provenance.files[0].parents[1] if model.provenance.layout == "diffusers-folder" else None
    ready = Source(
        model=model,
        tokenizer=find_tokenizer(folder, tokenizer, model.config.text_encoder),
        provenance=describe_provenance(model.provenance, model.config, merged, licence),
        known_words=None if known_words is None else tuple(known_words),
    )
    del model
    report(f"{ready.provenance['source']}: read in {time.monotonic() - begun:.0f} s")
    with replacing(target) as staging:
        write_bundle(ready, staging, name, accepted, report)
    minutes = (time.monotonic() - begun) / 60
    report(f'{target}: written in {minutes:.1f} minutes; draw with: python -m runtime --model {target} "a cat"')


def write_bundle(
    source: Source, folder: Path, name: str, accepted: float | None, report: Callable[[str], None]
) -> None:
    """Write every file of a bundle, the manifest last."""
    config = source.model.config
    schedule = noise_schedule(config.scheduler)
    steps = min(DEFAULT_STEPS, schedule.num_train_timesteps)
    plans = {key: plan for sampler in SAMPLERS for key, plan in default_plans(schedule, sampler, steps).items()}
    conformance = Conformance()
    conformance.add_bits()
    conformance.add_noise(CONFORMANCE_LATENTS)
    for sampler in SAMPLERS:
        key = f"{sampler}-{min(10, schedule.num_train_timesteps)}"
        conformance.add_plan(key, plans[key])
    begun = time.monotonic()
    add_text_cases(conformance, source.model, source.tokenizer, plans, DEFAULT_GUIDANCE)
    report(f"{CONFORMANCE}: drew a picture in PyTorch in {time.monotonic() - begun:.0f} s")
    networks = modules(source.model.text_encoder, source.model.unet, source.model.vae)
    graphs = {}
    for role, module in networks.items():
        spec = SPECS[role](module, config)
        entry, parity = export_graph(spec, folder, accepted, report)
        conformance.add_graph(spec, "fp32", parity)
        graphs[role] = {"fp32": entry}
    (folder / TOKENIZER).write_bytes(source.tokenizer.data)
    (folder / CONFORMANCE).write_bytes(conformance.to_bytes())
    manifest = describe(source, name, schedule)
    manifest["conditioning"] |= {"tokenizer": describe_file(folder / TOKENIZER)}
    tables = {key: plan.to_json() for key, plan in plans.items()}
    write_manifest(folder, {**manifest, "graphs": graphs, "plans": tables})
