"""Proves the whole way from a prompt, or a prompt and a picture with or without a mask, to a picture: a checkpoint is
exported and drawn by the runtime, and diffusers' StableDiffusionPipeline, StableDiffusionImg2ImgPipeline and
StableDiffusionInpaintPipeline draw the same weights from the same noise. Random weights, real classes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import checkpoint_files
import full_size
import full_size_bundle
import numpy as np
import pytest
import random_weights
import reference_models
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img, pipeline_stable_diffusion_inpaint
from PIL import Image
from reference_models import part
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from export.sd15 import export_sd15
from runtime import Pipeline, load
from runtime.noise import noise_generator
from training.stable_diffusion.config import SD15, StableDiffusionConfig
from training.stable_diffusion.tokenizer import TOKENIZER_FILE

PROMPT, NEGATIVE = "a photograph of an astronaut riding a horse, it's 2026", "blurry, low quality"
WEIGHTED = "a (photograph:1.4) of [an astronaut], BREAK riding a ((horse))"
# The same by hand: two chunks of pieces that count alike.
CHUNKS = (
    (("a", 1.0), ("photograph", 1.4), ("of", 1.0), ("an astronaut", 1 / 1.1), (",", 1.0)),
    (("riding a", 1.0), ("horse", 1.21)),
)
STEPS, GUIDANCE, SEED = 10, 7.5, 11
UPSCALE_STRENGTH = 0.6
LATENTS_TOLERANCE = 1e-3  # of the largest latent
LEAST_PSNR_DB = 50.0  # of the images, which are rounded to 256 levels: 59 dB are lost to that alone


# The tokenizer is CLIP's own, so the vocabulary is, too.
def with_vocabulary(config: StableDiffusionConfig) -> StableDiffusionConfig:
    return replace(config, text_encoder=replace(config.text_encoder, vocab_size=SD15.text_encoder.vocab_size))


POCKET, SMALLEST = with_vocabulary(random_weights.POCKET), with_vocabulary(random_weights.SMALLEST)
SCHEDULE = {key: value for key, value in checkpoint_files.SCHEDULER.items() if key != "_class_name"}
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "heun": HeunDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}


@dataclass(frozen=True)
class Case:
    """One picture: which sampler, what the network is taken to predict, layers skipped, its size, and its beginning."""

    sampler: str
    prediction_type: str = "epsilon"
    clip_skip: int = 0
    width: int = 64
    height: int = 48
    strength: float | None = None  # of a picture to begin at
    weighted: bool = False  # WEIGHTED instead of PROMPT
    upscale: float | None = None  # of latents, for a second pass
    masked: bool = False  # a part of the picture is drawn anew


@dataclass(frozen=True)
class Picture:
    """latents float32 (1, 4, h, w), image float (H, W, 3) in [0, 1]."""

    latents: np.ndarray
    image: np.ndarray


Networks = Callable[[], tuple[CLIPTextModel, UNet2DConditionModel, AutoencoderKL]]


def noise(case: Case, factor: int) -> np.ndarray:
    return noise_generator("philox", SEED).draw((4, case.height // factor, case.width // factor))


def second_pass(
    case: Case, pipeline: StableDiffusionPipeline, told: dict[str, Any], latents: torch.Tensor
) -> torch.Tensor:
    """Latents drawn once more by image to image, enlarged by PyTorch, with draw 0 of the larger size."""
    larger = torch.nn.functional.interpolate(latents, scale_factor=case.upscale, mode="bilinear")
    drawn = torch.from_numpy(noise_generator("philox", SEED).draw(tuple(larger.shape[1:])))[None]
    again = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    with drawing(drawn):
        return again(**told, image=larger, strength=UPSCALE_STRENGTH).images


def source(case: Case) -> np.ndarray:
    """A picture to begin at, uint8 (height, width, 3): coarse, so that it is not all noise."""
    coarse = np.random.default_rng(1).integers(0, 256, (case.height // 8, case.width // 8, 3), np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def mask(case: Case) -> np.ndarray:
    """What of it is drawn anew, uint8 (height, width): a part whose edges lie across latents."""
    made = np.zeros((case.height, case.width), np.uint8)
    made[5 : case.height // 2 + 3, case.width // 4 + 1 : -9] = 255
    return made


def beginning(case: Case, vae: AutoencoderKL, drawn: torch.Tensor) -> dict[str, Any]:
    """What diffusers is to begin at: noise and a size, or a picture and its mask, or the latents of a picture; to these
    it adds the same noise."""
    size = {"width": case.width, "height": case.height}
    if case.masked:
        pictures = {"image": Image.fromarray(source(case)), "mask_image": Image.fromarray(mask(case))}
        return pictures | size | {"strength": case.strength}
    if case.strength is None:
        return {"latents": drawn} | size
    pixels = torch.from_numpy(source(case)).permute(2, 0, 1)[None] / 127.5 - 1
    mean = vae.encode(pixels).latent_dist.mode()  # diffusers would draw from the distribution, the runtime does not
    return {"image": mean * vae.config.scaling_factor, "strength": case.strength}


@contextlib.contextmanager
def drawing(noise: torch.Tensor) -> Iterator[None]:
    """In here diffusers' pipelines of pictures, which take no latents, draw this noise, and encode to the mean."""
    modules = pipeline_stable_diffusion_img2img, pipeline_stable_diffusion_inpaint
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "randn_tensor", return_value=noise))
        stack.enter_context(
            mock.patch.object(
                pipeline_stable_diffusion_inpaint, "retrieve_latents", lambda encoded, **_: encoded.latent_dist.mode()
            )
        )
        yield


def scheduler(case: Case) -> Any:
    kind = SCHEDULERS[case.sampler]
    return kind.from_config(SCHEDULE, prediction_type=case.prediction_type, timestep_spacing="leading")


def tokenizer() -> CLIPTokenizer:
    begin, end = "<|startoftext|>", "<|endoftext|>"
    special = {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": end}
    return CLIPTokenizer(tokenizer_file=str(TOKENIZER_FILE), model_max_length=77, **special)


def by_hand(pipeline: StableDiffusionPipeline, clip_skip: int) -> torch.Tensor:
    """``CHUNKS`` as diffusers' text encoder reads them, tokens times the weights of their pieces, at the old mean."""
    chunks = []
    for pieces in CHUNKS:
        states, _ = pipeline.encode_prompt(" ".join(text for text, _ in pieces), "cpu", 1, False, clip_skip=clip_skip)
        weights = [weight for text, weight in pieces for _ in pipeline.tokenizer(text).input_ids[1:-1]]
        scale = torch.tensor([1.0, *weights, *[1.0] * (states.shape[1] - 1 - len(weights))])[None, :, None]
        chunks.append(states * scale * states.mean() / (states * scale).mean())
    return torch.cat(chunks, 1)


@torch.no_grad()
def drawn_by_diffusers(networks: Networks, cases: list[Case]) -> list[Picture]:
    """Every case by diffusers' pipeline; its networks are gone when this returns."""
    text_encoder, unet, vae = networks()
    if not hasattr(text_encoder, "text_model"):  # transformers 5 has dropped the name by which diffusers skips layers
        text_encoder.__dict__["text_model"] = text_encoder
    pictures = []
    for case in cases:
        begun = StableDiffusionInpaintPipeline if case.masked else StableDiffusionImg2ImgPipeline
        pipeline = (StableDiffusionPipeline if case.strength is None else begun)(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer(),
            unet=unet,
            scheduler=scheduler(case),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        # Of its own accord diffusers skips no layers for the negative prompt, so that guidance would lead from one
        # space into another; the web interfaces, where the option comes from, skip them for both, and so does ours.
        negative, _ = pipeline.encode_prompt(NEGATIVE, "cpu", 1, False, clip_skip=case.clip_skip)
        told: dict[str, Any] = {"prompt": PROMPT, "clip_skip": case.clip_skip}
        if case.weighted:
            told = {"prompt_embeds": by_hand(pipeline, case.clip_skip)}
            empty, _ = pipeline.encode_prompt("", "cpu", 1, False, clip_skip=case.clip_skip)
            negative = torch.cat([negative, empty], dim=1)
        drawn = torch.from_numpy(noise(case, factor))[None]
        with drawing(drawn):
            told |= {"negative_prompt_embeds": negative, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
            told["output_type"] = "latent"
            latents = pipeline(**told, **beginning(case, vae, drawn)).images
        if case.upscale is not None:
            latents = second_pass(case, pipeline, told, latents)
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
        image = pipeline.image_processor.postprocess(decoded, output_type="np")[0]
        pictures.append(Picture(latents.numpy(), image))
    del pipeline, text_encoder, unet, vae
    gc.collect()
    return pictures


def assert_the_runtime_draws(pipeline: Pipeline, case: Case, expected: Picture) -> None:
    """Print how far the runtime's picture is from diffusers', and hold it to the bounds."""
    begin = {} if case.strength is None else {"image": source(case), "strength": case.strength}
    if case.upscale is not None:
        begin = {"upscale": case.upscale, "upscale_strength": UPSCALE_STRENGTH}
    begin |= {"mask": mask(case), "paste_back": False} if case.masked else {}
    result = pipeline(
        WEIGHTED if case.weighted else PROMPT,
        negative_prompt=NEGATIVE,
        width=case.width,
        height=case.height,
        sampler=case.sampler,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        clip_skip=case.clip_skip,
        seed=SEED,
        **begin,
    )
    assert np.isfinite(expected.latents).all()
    scale = np.abs(expected.latents).max()
    difference = np.abs(result.sample - expected.latents).max() / scale
    mean_square = np.mean((result.images[0] / 255 - expected.image) ** 2)
    psnr = -10 * np.log10(mean_square)
    print(f"{case}: latents up to {scale:.3g} differ by {difference:.2e} of that, images by {psnr:.1f} dB")
    assert expected.image.std() > 0.05  # it is not a flat picture, in which nothing could differ
    assert difference <= LATENTS_TOLERANCE
    assert psnr >= LEAST_PSNR_DB


def small_networks(config: StableDiffusionConfig, state: dict[str, torch.Tensor]) -> Networks:
    def networks() -> tuple[CLIPTextModel, UNet2DConditionModel, AutoencoderKL]:
        return (
            reference_models.reference_text_encoder(config.text_encoder, part(state, "text_encoder")),
            reference_models.reference_unet(config.unet, part(state, "unet")),
            reference_models.reference_vae(config.vae, part(state, "vae")),
        )

    return networks


def full_networks() -> tuple[CLIPTextModel, UNet2DConditionModel, AutoencoderKL]:
    folder = full_size.folder()
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    return text_encoder, unet, vae


def assert_all_drawn(networks: Networks, pipeline_for: Callable[[str], Pipeline], cases: list[Case]) -> None:
    """Draw all cases by diffusers, then by the runtime, whose pipeline depends on what the network is taken to predict.

    One model is in memory at a time, so that the full size fits.
    """
    pictures = drawn_by_diffusers(networks, cases)
    for case, expected in zip(cases, pictures, strict=True):
        assert_the_runtime_draws(pipeline_for(case.prediction_type), case, expected)


def filling_in(config: StableDiffusionConfig) -> StableDiffusionConfig:
    """The same model for inpainting, whose UNet is told of the mask and of what is beside it."""
    return replace(config, unet=replace(config.unet, in_channels=9))


def assert_a_small_size_draws(config: StableDiffusionConfig, cases: list[Case], folder: Path) -> None:
    """Write a checkpoint of random weights, export it for each prediction type, and draw all cases both ways."""
    state = random_weights.random_state(config)
    checkpoint = folder / "small.safetensors"
    save_file(checkpoint_files.original_layout(config, state), checkpoint)

    @cache
    def pipeline_for(prediction_type: str) -> Pipeline:
        bundle = folder / prediction_type
        export_sd15(checkpoint, bundle, config=config, prediction_type=prediction_type)
        return load(bundle, provider="cpu")

    with reference_models.one_thread():
        assert_all_drawn(small_networks(config, state), pipeline_for, cases)


def test_the_smallest_size_draws_what_diffusers_draws(tmp_path: Path) -> None:
    cases = [Case("ddim"), Case("pndm"), Case("ddim", strength=0.6), Case("ddim", weighted=True)]
    cases.append(Case("ddim", width=32, height=32, upscale=1.5))
    cases += [Case("ddim", strength=1.0, masked=True), Case("euler", strength=0.6, masked=True)]
    assert_a_small_size_draws(SMALLEST, cases, tmp_path)


@pytest.mark.slow
def test_the_smallest_inpainting_model_draws_what_diffusers_draws(tmp_path: Path) -> None:
    cases = [Case("ddim", strength=1.0, masked=True), Case("euler", strength=0.6, masked=True)]
    assert_a_small_size_draws(filling_in(SMALLEST), cases, tmp_path)


# PNDM at full strength alone: of its list, which has one timestep twice, diffusers takes a slice that is no beginning.
MASKED = [
    Case("ddim", strength=1.0, masked=True),
    Case("ddim", strength=0.6, masked=True, width=40, height=72),
    Case("euler", strength=1.0, masked=True),
    Case("euler", strength=0.5, masked=True),
    Case("dpmpp_2m", strength=1.0, masked=True),
    Case("dpmpp_2m", strength=0.7, masked=True),
    Case("pndm", strength=1.0, masked=True),
    Case("heun", strength=0.6, masked=True),
    Case("unipc", strength=0.6, masked=True),
    Case("ddim", strength=0.8, masked=True, prediction_type="v_prediction"),
]


@pytest.mark.slow
def test_the_pocket_size_draws_what_diffusers_draws(tmp_path: Path) -> None:
    cases = [
        Case("ddim"),
        Case("pndm"),
        Case("ddim", clip_skip=2),
        Case("pndm", width=40, height=72),
        Case("ddim", prediction_type="v_prediction"),
        Case("pndm", prediction_type="v_prediction", clip_skip=1),
        Case("ddim", strength=0.35, width=40, height=72),
        Case("euler", strength=0.8),
        Case("ddim", clip_skip=1, weighted=True),
        Case("euler", strength=1.0, prediction_type="v_prediction"),
        Case("ddim", width=40, height=32, upscale=2),
        Case("euler", width=32, height=32, upscale=1.5),
    ]
    assert_a_small_size_draws(POCKET, cases + MASKED, tmp_path)


@pytest.mark.slow
def test_the_pocket_size_that_is_told_of_masks_fills_in_what_diffusers_fills_in(tmp_path: Path) -> None:
    assert_a_small_size_draws(filling_in(POCKET), MASKED, tmp_path)


@pytest.mark.full
def test_the_full_size_draws_what_diffusers_draws() -> None:
    cases = [Case("ddim", width=256, height=256), Case("pndm", clip_skip=1, width=256, height=256)]
    bundle = full_size_bundle.exported_bundle()
    assert_all_drawn(full_networks, lambda _: load(bundle, provider="cpu", low_memory=True), cases)
