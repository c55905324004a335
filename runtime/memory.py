"""How much memory a request needs, so that it can be planned, and what cannot end well is refused before it begins.

The terms are fitted to full-size Stable Diffusion 1.5 in float32, ONNX Runtime 1.32 on the CPU, weights as external
data that are mapped, each in a process of its own. Most resident memory beside what the process held before, mapped
files included, in MiB; of graphs whose attention is fused ("fp32-cpu") and of portable ones:

    ===========  ====  =========  =====  =========  ========  =========
    network      rows  pixels     fused  estimated  portable  estimated
    ===========  ====  =========  =====  =========  ========  =========
    unet         1     256 x 256  3,340  3,426      3,387     3,509
    unet         2     256 x 256  3,377  3,458      3,468     3,625
    unet         1     512 x 512  3,452  3,522      4,422     4,624
    unet         2     512 x 512  3,602  3,650      5,538     5,854
    unet         2     768 x 512  3,681  3,778      –         –
    vae_encoder  1     512 x 512  547    645        547       773
    vae_encoder  1     768 x 512  852    879        –         –
    vae_decoder  1     256 x 256  466    709        466       717
    vae_decoder  1     512 x 512  1,260  1,263      1,260     1,391
    vae_decoder  1     768 x 512  1,420  1,632      –         –
    ===========  ====  =========  =====  =========  ========  =========

Of a U-Net of pixels 64 rows of 28 x 28 took 55 MiB more (weights of 1.7 MB) and 104 (6.7 MB), where 56 and 111 are
estimated.

``tests/full_size_memory.py`` measures all of it again, and prints what the constants should be.

Where there is a limit (``max_memory``) the estimate is planned with, see ``runtime.memory_plan``. Where there is none,
a request is refused only if it needs far more than there is, and a warning is given where it may just not fit;
``ignore_memory`` asks for neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from runtime.bundle import Bundle, GraphVariant, Latents, TextConditioning
from runtime.optimized import graph_bytes
from runtime.session import MAX_MODEL_BYTES
from runtime.vae import Tiling, spans

MIB = 2**20
PROCESS = 64 * MIB  # Python, NumPy and ONNX Runtime themselves
SESSION = 16 * MIB  # of a network however small: its graph, and what ONNX Runtime reads of itself
FLOAT = 4  # bytes
IMAGE_FIXED = 1024  # what Python holds of one: its seed, and what it shows
WORTH_TELLING = 10**8
CPU_ONLY = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class Cost:
    """What one network takes on the CPU, whatever its width; ``tests/full_size_memory.py`` measures it.

    Weights grow with the square of a network's channels, and its feature maps with these: so with the root of the
    weights.

    Attributes:
        loading: the most while its session is made, in times its weights, where these are external data.
        held: what the session takes when it is made, likewise.
        fixed: what an evaluation takes however large the picture, in times its weights.
        place: bytes of an evaluation for each place of its finest level in each row, in times the root of its weights.
            A place is a latent to a U-Net, and a pixel to a VAE and to a U-Net of pixels.
        pair: bytes for each pair of latents of each row: what attention holds of them where it is not fused.
    """

    loading: float
    held: float
    fixed: float
    place: float
    pair: int = 0

    def whole(self, weights: int) -> float:
        """Bytes of an evaluation however large the picture."""
        return self.fixed * weights

    def maps(self, weights: int, places: int) -> float:
        """Bytes of the feature maps of one row."""
        return self.place * math.sqrt(weights) * places

    def scores(self, latents: int) -> int:
        """Bytes of one row's attention."""
        return self.pair * latents**2


# By role. Where attention is not fused the scores and their softmax are there in each of 8 heads, and in a VAE's one. A
# U-Net of pixels, which has no fused graph, needs more for each place than one of latents.
PORTABLE = {
    "text_encoder": Cost(1.12, 1.0, 0.14, 0.0),
    "unet": Cost(1.01, 1.01, 0.02, 0.9, 2 * 8 * FLOAT),
    "vae_encoder": Cost(1.17, 0.98, 0.26, 0.16, 2 * FLOAT),
    "vae_decoder": Cost(1.02, 0.99, 1.7, 0.21, 2 * FLOAT),
}
FUSED = {role: replace(cost, pair=0) for role, cost in PORTABLE.items()} | {"unet": Cost(1.01, 1.01, 0.02, 0.56)}


@dataclass(frozen=True)
class Stage:
    """One network in memory.

    Attributes:
        role: such as "unet".
        loading: bytes at the worst moment while its session is made.
        held: bytes of the session.
        activations: bytes that an evaluation takes beside it, and that are given back when its turn is over.
    """

    role: str
    loading: int
    held: int
    activations: int

    @property
    def peak(self) -> int:
        return max(self.loading, self.held + self.activations)


@dataclass(frozen=True)
class Estimate:
    """What a request needs, by stage.

    Attributes:
        stages: the networks, in the order in which they run.
        one_network: whether one is held at a time.
        process: bytes that are held before any network is.
        images: bytes of what is finished, and of what is to be drawn, until all is.
    """

    stages: tuple[Stage, ...]
    one_network: bool
    process: int
    images: int

    @property
    def peak(self) -> int:
        """Bytes at the worst moment: in one stage, or with all that ran before it and was kept."""
        kept = peak = self.process + self.images
        for stage in self.stages:
            peak = max(peak, kept + stage.peak)
            kept += 0 if self.one_network else stage.held
        return peak

    def alone(self, role: str) -> int:
        """Bytes while a network is the only one; without it those that are held anyway."""
        return self.process + self.images + max((stage.peak for stage in self.stages if stage.role == role), default=0)

    def __str__(self) -> str:
        stages = [f"{stage.role} {gigabytes(stage.peak)}" for stage in self.stages]
        return ", ".join([*stages, *([f"images {gigabytes(self.images)}"] if self.images >= WORTH_TELLING else [])])


@dataclass(frozen=True)
class MemoryPlan:
    """How a request is drawn in the memory that there is. Of this only tiles change a picture.

    Attributes:
        batch_size: images evaluated together. Under guidance the U-Net has two rows for each.
        one_network: whether a graph is dropped before another is loaded.
        in_turn: whether the two halves of guidance are evaluated one after the other.
        tiles: how the VAE divides what is larger than a tile; None for not at all.
    """

    batch_size: int
    one_network: bool = False
    in_turn: bool = False
    tiles: Tiling | None = None

    def __str__(self) -> str:
        words = ["one network at a time" if self.one_network else "all networks held"]
        words += ["the halves of guidance in turn"] if self.in_turn else []
        words += [f"{self.batch_size} image{'s' * (self.batch_size > 1)} at once"]
        words += [f"tiles of {self.tiles.tile} latents"] if self.tiles else []
        return ", ".join(words)


@dataclass(frozen=True)
class Demand:
    """What is asked of a bundle.

    Attributes:
        width, height: of the images, in pixels.
        graphs: the networks that run, by role, in their order.
        images: in all. What of them is finished is held until all are.
        guided: whether the U-Net is asked with the condition and without.
        process: bytes that are held before any network is.
    """

    width: int
    height: int
    graphs: Mapping[str, GraphVariant]
    images: int = 1
    guided: bool = True
    process: int = PROCESS


def estimate(bundle: Bundle, demand: Demand, memory: MemoryPlan) -> Estimate:
    """What a request needs on the CPU when it is drawn as ``memory`` says."""
    stages = []
    for role, graph in demand.graphs.items():
        weights, (loading, held) = weight_bytes(bundle, graph), copies(graph)
        cost = (FUSED if graph.providers == CPU_ONLY else PORTABLE)[role]
        activations = math.ceil(cost.whole(weights) + ACTIVATIONS[role](cost, weights, bundle, demand, memory))
        loading, held = (SESSION + math.ceil(times * weights) for times in (cost.loading * loading, cost.held * held))
        stages.append(Stage(role, loading, held, activations))
    images = demand.images * image_bytes(bundle, demand.width, demand.height)
    return Estimate(tuple(stages), memory.one_network, demand.process, images)


def weight_bytes(bundle: Bundle, graph: GraphVariant) -> int:
    """Of a graph's weights where it runs: those that are stored in half precision are widened when it is loaded."""
    size = graph_bytes(graph)
    training = bundle.provenance.get("training")
    halved: bool = isinstance(training, Mapping) and training.get("half_weights") is True
    halved = halved or any(variants.get("fp16") is graph for variants in bundle.graphs.values())
    return 2 * size if halved else size


def copies(graph: GraphVariant) -> tuple[float, float]:
    """How often weights are there while a session is made, and then; those inside a graph are copied out of it."""
    if graph.external_data:
        return 1.0, 1.0
    return (2.3, 1.8) if graph.file.size <= MAX_MODEL_BYTES else (1.6, 1.0)


def latent_sides(height: int, width: int, latents: Latents | None) -> tuple[int, int]:
    """Height and width in latents, or else in pixels, of a size in pixels."""
    factor = 1 if latents is None else latents.factor
    return height // factor, width // factor


def no_activations(cost: Cost, weights: int, bundle: Bundle, demand: Demand, memory: MemoryPlan) -> float:
    """Of a text encoder, none that grow with the picture."""
    return 0.0


def unet_activations(cost: Cost, weights: int, bundle: Bundle, demand: Demand, memory: MemoryPlan) -> float:
    """Of all rows of one evaluation: those of the finest level, whose attention is the largest, if it has one."""
    rows = memory.batch_size * (2 if demand.guided and not memory.in_turn else 1)
    places = math.prod(latent_sides(demand.height, demand.width, bundle.latents))
    return rows * (cost.maps(weights, places) + (cost.scores(places) if bundle.latents else 0))


def vae_activations(cost: Cost, weights: int, bundle: Bundle, demand: Demand, memory: MemoryPlan) -> float:
    """Of one image, whole or tile by tile."""
    assert bundle.latents
    sides, tiles, blended = latent_sides(demand.height, demand.width, bundle.latents), memory.tiles, 0
    if tiles is not None and max(sides) > tiles.tile:
        blended = 2 * FLOAT * 3 * demand.height * demand.width  # the whole, and the weighted part that is added to it
        sides = spans(sides[0], tiles)[0][1], spans(sides[1], tiles)[0][1]
    places = math.prod(sides)
    return blended + cost.maps(weights, places * bundle.latents.factor**2) + cost.scores(places)


ACTIVATIONS = {
    "text_encoder": no_activations,
    "unet": unet_activations,
    "vae_encoder": vae_activations,
    "vae_decoder": vae_activations,
}


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


def gigabytes(count: int, up: bool = False) -> str:
    """In words, in megabytes where it is less than one of them: rounded, or upwards where less would not do."""
    unit, name = (10**8, "GB") if count >= 10**9 else (10**6, "MB")
    rounded = -(-count // unit) if up else round(count / unit)
    return f"{rounded / 10:.1f} {name}" if name == "GB" else f"{rounded} {name}"
