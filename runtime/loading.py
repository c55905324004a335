"""From a bundle's name to a pipeline."""

from __future__ import annotations

import os

from runtime.bundle import DEFAULT_MODEL, Bundle, TextConditioning, open_bundle
from runtime.class_to_image import ClassToImage
from runtime.embeddings import EmbeddingInput
from runtime.errors import BundleError, RequestError
from runtime.graph_cache import default_cache
from runtime.memory_plan import parse_memory
from runtime.networks import Networks
from runtime.pipeline import Pipeline
from runtime.session import choose_provider
from runtime.text_to_image import TextToImage
from runtime.vae import TILING, Tiling


def load(
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    provider: str = "auto",
    threads: int | None = None,
    low_memory: bool = False,
    variant: str | None = None,
    ignore_memory: bool = False,
    embeddings: EmbeddingInput = (),
    cache: bool = True,
    max_memory: str | int | None = None,
) -> Pipeline:
    """Open a bundle for drawing.

    Args:
        model: a bundle's folder, or its name (looked for in $DIFFUSION_ANYWHERE_MODELS, ./models_onnx and the package);
            without it the one that comes with the package and draws what a sentence says.
        provider: "cpu", "cuda" (raises if CUDA would not really be used) or "auto".
        threads: threads inside an operator; without it one for each core.
        low_memory: hold one network at a time, evaluate the two halves of guidance in turn, and decode images of more
            than 64 latents a side in tiles. It takes longer, since networks are loaded again for every request. On
            the CPU latents stay the same to the bit; of images, only those in tiles change, slightly.
        variant: which of a network's graphs, such as "fp16", where it has several; without it float32, in the variant
            made for the provider ("fp32-cpu") where there is one. "fp32" is the portable graph.
        ignore_memory: try also what seems to need far more memory than there is, and say nothing of it.
        embeddings: learned words that prompts may name, as ``TextToImage.with_embeddings`` takes them.
        cache: keep large networks on this machine's disk as ONNX Runtime has optimised them for its CPU, so that they
            load faster the next time, and hold less memory. It changes no image.
        max_memory: what the whole process may take while it draws one request on the CPU, such as "3GB", "3000MB",
            "2.8GiB", or a number of bytes. Each request gives up no more than it has to, in this order: networks held
            together, the halves of guidance in one evaluation, its batch size, and the VAE's view of the whole picture.
            Only the last changes images, slightly, and is in their metadata then. Requests at the same time in several
            threads take as much each.

    Returns:
        ``TextToImage`` or ``ClassToImage``, by what the model is told.

    Raises:
        BundleError: the bundle is missing, damaged or unknown.
        EngineError: ONNX Runtime is missing, doubled, or cannot use the provider.
        RequestError: provider or variant is unknown, an embedding cannot be used, max_memory is no amount of memory or
            not for the provider, or the cache's size is none.
    """
    limit = None if max_memory is None else parse_memory(max_memory)
    bundle = open_bundle(model)
    chosen, why = choose_provider(provider)
    kept = default_cache() if cache else None
    networks = Networks(bundle, chosen, threads, low_memory, variant, ignore_memory, kept, limit)
    pipeline = make_pipeline(bundle, networks, why, TILING if low_memory else None)
    if not embeddings:
        return pipeline
    if not isinstance(pipeline, TextToImage):
        raise RequestError(f"{bundle.name} draws classes and takes no text; leave out the embeddings")
    return pipeline.with_embeddings(embeddings)


def make_pipeline(bundle: Bundle, networks: Networks, provider_reason: str, tiles: Tiling | None = None) -> Pipeline:
    """The pipeline for what the model is told; without ``tiles`` every image is decoded whole."""
    conditioning = bundle.conditioning
    if isinstance(conditioning, TextConditioning) and bundle.latents:
        return TextToImage(bundle, networks, provider_reason, conditioning, bundle.latents, tiles)
    if not isinstance(conditioning, TextConditioning) and bundle.pixels:
        return ClassToImage(bundle, networks, provider_reason, conditioning, bundle.pixels)
    raise BundleError(f"{bundle.folder} has neither text with latents nor classes with pixels")
