"""How much memory a request needs, so that what cannot end well is refused before it begins.

The terms are fitted to full-size Stable Diffusion 1.5 in float32, ONNX Runtime 1.32 on the CPU, weights as external
data, each in a process of its own. Peaks of anonymous memory in MiB:

    ===========  ====  =========  ========  =========
    network      rows  pixels     measured  estimated
    ===========  ====  =========  ========  =========
    unet         1     256 x 256  3,503     3,521
    unet         2     256 x 256  3,610     3,635
    unet         1     384 x 640  4,427     4,495
    unet         1     512 x 512  4,559     4,631
    unet         2     512 x 512  5,830     5,855
    vae_decoder  1     256 x 256  621       691
    vae_decoder  1     512 x 512  1,928     2,003
    ===========  ====  =========  ========  =========

Of a U-Net of pixels 64 rows of 28 x 28 took 55 MiB more (weights of 1.7 MB) and 104 (6.7 MB), where 56 and 111 are
estimated.

The estimate is for refusing what is hopeless, not for planning, and for such graphs. One whose attention an engine has
fused needs less. Of fp16 graphs, which the CPU provider casts to float32, it is not measured. So a request is refused
only where it needs far more than there is, and where it may just not fit, a warning is given. ``runtime.load`` takes
``ignore_memory``, which asks for neither.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from runtime.available_memory import available_bytes, held_bytes
from runtime.bundle import Bundle, Latents, TextConditioning
from runtime.errors import RequestError
from runtime.networks import Networks
from runtime.recipe import Recipe
from runtime.vae import TILING, spans

MIB = 2**20
SLACK = 1.3  # what needs so many times what there is does not fit, however rough the estimate
PROCESS = 64 * MIB  # Python, NumPy and ONNX Runtime themselves
# While a session is made, some weights are there twice: as in the file, and laid out for the kernels.
LOADING = 1.12
FLOAT = 4  # bytes
# The U-Net: scores and their softmax in each of 8 heads, of every latent with every other; and feature maps.
UNET_ATTENTION = 2 * 8 * FLOAT
UNET_PER_LATENT = 50 * 1024
UNET_FIXED = 64 * MIB
# The VAE: feature maps of 128 to 256 channels at full size, or scores and softmax of its one head.
VAE_ATTENTION = 2 * FLOAT
VAE_PER_PIXEL = 7000
TEXT_ENCODER_FIXED = 64 * MIB
# A U-Net of pixels: feature maps of every pixel, as many as the root of its weights says.
PIXEL_PER_ROOT = 0.9
IMAGE_FIXED = 1024  # what Python holds of one: its seed, and what it shows
WORTH_TELLING = 10**8
DRAWING = ("text_encoder", "unet", "vae_decoder")


@dataclass(frozen=True)
class Stage:
    """One network in memory.

    Attributes:
        role: such as "unet".
        weights: bytes of its files.
        activations: bytes that an evaluation takes beside them, and that ONNX Runtime then keeps.
    """

    role: str
    weights: int
    activations: int

    @property
    def peak(self) -> int:
        return max(int(LOADING * self.weights), self.weights + self.activations)


@dataclass(frozen=True)
class Estimate:
    """What a request needs, by stage.

    Attributes:
        stages: the networks, in the order in which they run.
        low_memory: whether one is held at a time.
        images: bytes of what is finished, and of what is to be drawn, until all is.
    """

    stages: tuple[Stage, ...]
    low_memory: bool
    images: int

    @property
    def peak(self) -> int:
        """Bytes at the worst moment: in one stage, or with all that ran before it and was kept."""
        kept = peak = PROCESS + self.images
        for stage in self.stages:
            peak = max(peak, kept + stage.peak)
            kept += 0 if self.low_memory else stage.weights + stage.activations
        return peak

    def __str__(self) -> str:
        stages = [f"{stage.role} {gigabytes(stage.peak)}" for stage in self.stages]
        return ", ".join([*stages, *([f"images {gigabytes(self.images)}"] if self.images >= WORTH_TELLING else [])])


@dataclass(frozen=True)
class Demand:
    """What is asked of a bundle.

    Attributes:
        width, height: of the images, in pixels.
        batch: images evaluated together. Under guidance the U-Net has two rows for each, in turn with low_memory.
        low_memory: one network at a time, and the VAE in tiles.
        variant: the graphs that are preferred; without it float32.
        roles: the networks that run, in their order; of the VAE's encoder it is supposed that it needs what the decoder
            does, whose feature maps are the same and more.
        images: in all. What of them is finished is held until all are.
    """

    width: int
    height: int
    batch: int = 1
    low_memory: bool = False
    variant: str | None = None
    roles: Sequence[str] = DRAWING
    images: int = 1


def estimate(bundle: Bundle, demand: Demand) -> Estimate:
    """What it needs."""
    rows = demand.batch if demand.low_memory else 2 * demand.batch
    if bundle.latents is None:
        own_weights = weights(bundle, "unet", demand.variant)
        activations = {"unet": pixel_activations(rows, demand.height, demand.width, own_weights)}
    else:
        size = demand.height, demand.width, bundle.latents
        activations = {
            "text_encoder": TEXT_ENCODER_FIXED,
            "unet": unet_activations(rows, *size),
            "vae_encoder": vae_activations(*size, demand.low_memory),
            "vae_decoder": vae_activations(*size, demand.low_memory),
        }
    stages = (Stage(role, weights(bundle, role, demand.variant), activations[role]) for role in demand.roles)
    return Estimate(tuple(stages), demand.low_memory, demand.images * image_bytes(bundle, demand.width, demand.height))


def check_request(bundle: Bundle, networks: Networks, recipe: Recipe, roles: Sequence[str], images: int) -> None:
    """As ``check_memory``, unless that is to be ignored; what a graphics card has is not known here.

    Args:
        bundle, networks: the model, and how it is held.
        recipe: how the images are made.
        roles: the networks that make them, in their order.
        images: how many.

    Raises:
        RequestError: as ``check_memory``.
    """
    if networks.ignore_memory:
        return
    batch, here = min(recipe.settings.batch_size, images), roles if networks.provider == "cpu" else ()
    check_memory(bundle, Demand(*recipe.size, batch, networks.low_memory, networks.variant, here, images))


def check_memory(bundle: Bundle, demand: Demand) -> None:
    """Refuse a request that needs far more memory than there is, and warn of one that may not fit.

    What this process holds already counts as there: it is mostly networks of earlier requests, which are used again.

    Raises:
        RequestError: with what is needed, what there is, and what needs less.
    """
    free = available_bytes()
    if free is None:
        return
    there = free + held_bytes()
    needed = estimate(bundle, demand)
    if needed.peak <= there:
        return
    message = (
        f"{demand.width}x{demand.height}, {demand.batch} at once, needs about {gigabytes(needed.peak)} of memory "
        f"({needed}), and there are {gigabytes(there)}; {advice(bundle, demand, there)}"
    )
    if needed.peak > SLACK * there:
        raise RequestError(f"{message}; ignore_memory (--ignore-memory) tries it all the same")
    warnings.warn(message, stacklevel=3)


def advice(bundle: Bundle, demand: Demand, there: int) -> str:
    """The mildest change that would do, with what it needs, or else what is left to try."""
    one, one_network = "batch_size=1 (--batch-size 1)", "low_memory (--low-memory)"
    changes = [(one, 1, False), (one_network, demand.batch, True), (f"{one_network} with {one}", 1, True)]
    for words, batch, low in changes:
        if batch <= demand.batch and low >= demand.low_memory:
            peak = estimate(bundle, replace(demand, batch=batch, low_memory=low)).peak
            if peak <= there:
                return f"{words} needs {gigabytes(peak)}"
    if estimate(bundle, replace(demand, batch=1, images=1)).peak <= there:
        return "fewer images at a time (--count) need less, or a list (--prompts), which is written one by one"
    return f"a smaller width and height (--size) need less, and {one_network} with {one}"


def weights(bundle: Bundle, role: str, variant: str | None) -> int:
    variants = bundle.graphs[role]
    graph = variants.get(variant or "fp32") or variants.get("fp32") or next(iter(variants.values()))
    return sum(file.size for file in (graph.file, *graph.external_data))


def unet_activations(rows: int, height: int, width: int, latents: Latents) -> int:
    """Of one evaluation with a number of rows: those of its finest level, whose attention is the largest."""
    count = (height // latents.factor) * (width // latents.factor)
    return UNET_FIXED + rows * (UNET_ATTENTION * count**2 + UNET_PER_LATENT * count)


def vae_activations(height: int, width: int, latents: Latents, tiled: bool) -> int:
    """Of decoding one image, whole or tile by tile."""
    sides = [height // latents.factor, width // latents.factor]
    if tiled and max(sides) > TILING.tile:
        sides = [spans(side, TILING)[0][1] for side in sides]
    count = sides[0] * sides[1]
    return max(VAE_PER_PIXEL * count * latents.factor**2, VAE_ATTENTION * count**2)


def pixel_activations(rows: int, height: int, width: int, weights: int) -> int:
    """Of one evaluation of a U-Net of pixels, whose weights grow with the square of its channels."""
    return int(rows * height * width * PIXEL_PER_ROOT * math.sqrt(weights))


def image_bytes(bundle: Bundle, width: int, height: int) -> int:
    """Of one image until all are finished: its conditions, its last sample, its pixels, and these once more in between.

    What a text encoder says is held twice for each, of the prompt and of the negative one, in one chunk at least.
    """
    if isinstance(bundle.conditioning, TextConditioning) and bundle.latents:
        factor, text = bundle.latents.factor, bundle.conditioning
        sample = bundle.latents.channels * (height // factor) * (width // factor)
        return IMAGE_FIXED + FLOAT * (sample + 2 * text.max_length * text.embedding_dim) + 2 * 3 * height * width
    channels = bundle.pixels.channels if bundle.pixels else 3
    return IMAGE_FIXED + (FLOAT + 2) * channels * height * width


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
