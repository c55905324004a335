"""Exporting Stable Diffusion 1.5: a checkpoint in, a bundle that draws from text out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.bundle import check_name, describe_file, describe_schedule, write_manifest
from export.conformance import Conformance
from export.engines import check_engines
from export.errors import ExportError
from export.graph_writer import GraphWriter
from export.half_weights import round_weights
from export.preview import fit_preview
from export.sd15_defaults import Defaults, at_most, check_choice, choose_defaults
from export.sd15_graphs import SPECS, modules, stress_sizes
from export.sd15_picture import add_picture, add_tokens
from export.sd15_source import Source, open_source
from export.staging import replacing
from export.stress import stress_inputs
from export.tokenizer import TOKENIZER
from export.unchanged import check_unchanged
from runtime.bundle import CONFORMANCE
from runtime.plan import NoiseSchedule, Plan
from training.stable_diffusion.config import SchedulerConfig, StableDiffusionConfig
from training.stable_diffusion.lora import LoraFile

FAMILY = "stable-diffusion-1"
PRECISIONS = ("fp32", "fp16")
ACCEPT = "--accept-parity {role}:"
CONFORMANCE_SIDE = 16  # in latents
UNKNOWN_LICENCE = "unknown"


def noise_schedule(scheduler: SchedulerConfig) -> NoiseSchedule:
    """The schedule of training, and how the model is meant to be sampled."""
    return NoiseSchedule(
        alphas_cumprod=scheduler.alphas_cumprod.numpy(),
        prediction_type=scheduler.prediction_type,
        final_alpha_cumprod=scheduler.final_alpha_cumprod,
        timestep_spacing=scheduler.timestep_spacing,
        steps_offset=scheduler.steps_offset,
    )


def describe(source: Source, name: str, schedule: NoiseSchedule, defaults: Defaults) -> dict[str, Any]:
    """The manifest without graphs, plans and the tokenizer's file. The source's model still has its weights."""
    config = source.model.config
    text, vae = config.text_encoder, config.vae
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
            "preview": fit_preview(source.model.vae),
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
        "defaults": dataclasses.asdict(defaults) | {"width": source.image_size, "height": source.image_size},
    }


def export_sd15(
    source: str | Path,
    target: Path,
    *,
    precision: str = "fp32",
    half_weights: bool = False,
    engines: Sequence[str] | None = None,
    vae: Path | None = None,
    loras: Sequence[LoraFile] = (),
    use_ema: bool = False,
    prediction_type: str | None = None,
    zero_terminal_snr: bool = False,
    config: StableDiffusionConfig | None = None,
    tokenizer: Path | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    licence: str = UNKNOWN_LICENCE,
    accepted: Mapping[str, float] | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Make a bundle of a Stable Diffusion 1.x checkpoint.

    Args:
        source: a single file, a folder in diffusers' layout, or ``OWNER/NAME`` on the model hub.
        target: the bundle's folder, whose name becomes the bundle's. A bundle that is there is replaced in one step
            at the very end.
        precision: "fp32" or "fp16", of weights and arithmetic.
        half_weights: with "fp32", round the weights to float16 and store them so.
        engines: "cpu" (with "fp32"), "cuda" (with "fp16"): what graphs get variants for, beside the portable ones. None
            is the CPU, for graphs whose weights lie in a file of their own; an empty list is none.
        vae: a file or folder whose VAE replaces the checkpoint's.
        loras: are merged into text encoder and UNet.
        use_ema: of a single file with two sets of UNet weights, take the averaged ones.
        prediction_type: what the UNet predicts, where the checkpoint does not say or says otherwise.
        zero_terminal_snr: the model was trained with no signal left at the last timestep.
        config: sizes of the model in a single file, where it neither states them nor has those of Stable Diffusion
            1.5; a folder states its own.
        tokenizer: a ``tokenizer.json``; without it the folder's own, or CLIP's.
        sampler, steps, guidance_scale: what the bundle draws with unless told otherwise.
        licence: of the weights.
        accepted: by role, a bound on the difference from PyTorch to accept where it is looser than the usual one; the
            manifest tells. In fp16 there is nothing to accept.
        report: is called with a line for people now and then.

    Raises:
        CheckpointError: a checkpoint, VAE or LoRA is missing, damaged, or of another model.
        RequestError: no plan can be made for this noise schedule.
        ExportError: a graph differs from PyTorch by more than the bound, a file was changed meanwhile, or the target
            cannot be written. Nothing is left behind.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision {precision!r} is unknown; choose {' or '.join(PRECISIONS)}")
    if half_weights and precision != "fp32":
        raise ExportError(f"weights are float16 in {precision} anyway; leave out --half-weights")
    check_engines(engines, precision)
    check_accepted(accepted or {}, precision)
    check_choice(sampler, steps, guidance_scale)
    name = target.resolve().name
    check_name(name)
    begun = time.monotonic()
    with replacing(target) as folder:  # which refuses a target before half a minute of reading
        opened = open_source(
            source,
            vae=vae,
            loras=loras,
            use_ema=use_ema,
            prediction_type=prediction_type,
            zero_terminal_snr=zero_terminal_snr,
            config=config,
            tokenizer=tokenizer,
            licence=licence,
        )
        report(f"{opened.provenance['source']}: read in {time.monotonic() - begun:.0f} s")
        defaults = choose_defaults(noise_schedule(opened.model.config.scheduler), sampler, steps, guidance_scale)
        opened.provenance["training"]["half_weights"] = half_weights
        write_bundle(opened, folder, name, precision, half_weights, engines, defaults, accepted or {}, report)
    minutes = (time.monotonic() - begun) / 60
    further = " --image FILE --mask FILE" if opened.model.inpainting else ""
    command = f'python -m runtime --model {target} "a cat"{further}'
    report(f"{target}: written in {minutes:.1f} minutes; draw from it with: {command}")


def check_accepted(accepted: Mapping[str, float], precision: str) -> None:
    """See that every accepted bound is for a graph that can have one.

    Raises:
        ExportError: there is no such graph, or its variant is fp16, whose bound is 40 dB whatever is accepted.
    """
    if accepted and precision != "fp32":
        raise ExportError(
            f"looser bounds are accepted in fp32 alone; leave out --accept-parity with --precision {precision}"
        )
    for role in accepted.keys() - SPECS.keys():
        raise ExportError(f"there is no graph {role!r} whose parity could be accepted; there are {', '.join(SPECS)}")


def write_bundle(
    source: Source,
    folder: Path,
    name: str,
    precision: str,
    half_weights: bool,
    engines: Sequence[str] | None,
    defaults: Defaults,
    accepted: Mapping[str, float],
    report: Callable[[str], None],
) -> None:
    """Write every file of a bundle, the manifest last. The source's model has no weights afterwards."""
    schedule = noise_schedule(source.model.config.scheduler)
    plans = defaults.plans(schedule)
    if half_weights:
        model = source.model
        for role, module in modules(model.text_encoder, model.unet, model.vae).items():
            report(f"{role}: rounding the weights to fp16: {round_weights(SPECS[role](module, model.config))}")
    manifest = describe(source, name, schedule, defaults)
    conformance = Conformance()
    add_cases(conformance, source, plans, defaults, precision, report)
    option = ACCEPT if precision == "fp32" else None
    writer = GraphWriter(folder, conformance, accepted, option, report, half_weights, engines)
    graphs = write_graphs(source, writer, precision)
    (folder / TOKENIZER).write_bytes(source.tokenizer.data)
    (folder / CONFORMANCE).write_bytes(conformance.to_bytes())
    manifest["conditioning"]["tokenizer"] = describe_file(folder / TOKENIZER)
    tables = {key: plan.to_json() for key, plan in plans.items()}
    write_manifest(folder, {**manifest, "graphs": graphs, "plans": tables})


def add_cases(
    conformance: Conformance,
    source: Source,
    plans: dict[str, Plan],
    defaults: Defaults,
    precision: str,
    report: Callable[[str], None],
) -> None:
    """The cases beside those of the graphs: generators, plans, prompts and, in fp32, a picture.

    In fp16 every host rounds on its own, and after several guided steps no two of them draw the same picture to the
    last level.
    """
    latents = source.model.config.vae.latent_channels
    conformance.add_bits()
    conformance.add_noise((latents, CONFORMANCE_SIDE, CONFORMANCE_SIDE))
    schedule = noise_schedule(source.model.config.scheduler)
    for sampler in defaults.samplers(schedule):
        key = f"{sampler}-{at_most(10, schedule)}"
        conformance.add_plan(key, plans[key])
    add_tokens(conformance, source.tokenizer, source.model.config.text_encoder.max_position_embeddings)
    if precision == "fp32" and not source.model.inpainting:
        begun = time.monotonic()
        add_picture(conformance, source.model, source.tokenizer, plans, defaults.guidance_scale)
        report(f"{CONFORMANCE}: drew a picture in PyTorch in {time.monotonic() - begun:.0f} s")


def write_graphs(source: Source, writer: GraphWriter, precision: str) -> dict[str, Any]:
    """Write the four graphs; returns the manifest's ``graphs``. The model has no weights afterwards."""
    model = source.model
    graphs = {}
    for role, module in modules(model.text_encoder, model.unet, model.vae).items():
        spec = SPECS[role](module, model.config)
        half = precision == "fp16"
        graphs[role] = writer.write(
            spec, stress_inputs(spec, stress_sizes(role, model.config), model.config) if half else ()
        )
        check_unchanged(source.files)
    return graphs
