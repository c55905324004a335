"""From prompts to images, through latents (Rombach et al. 2022).

Shapes: B images, L tokens, D width of the text embeddings, C h w one image's latents, H W its pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from runtime.bundle import Bundle, Latents, TextConditioning
from runtime.conditioning import Conditioning
from runtime.embeddings import EmbeddingInput, Embeddings, open_embeddings
from runtime.errors import RequestError
from runtime.image import UInt8, to_uint8
from runtime.inpainting import Region, original_of, region_of, with_own_pixels
from runtime.limits import MAX_IMAGES, check_whole
from runtime.memory import MemoryPlan
from runtime.networks import Networks
from runtime.pipeline import Pipeline, Request
from runtime.preview import preview_latents
from runtime.prompt import PromptTokenizer, texts
from runtime.prompt_encoding import PROMPTS, Group, encode_prompts
from runtime.recipe import Recipe
from runtime.result import Result
from runtime.second_pass import PIXELS, described, enlarge, second_pass, take_upscale
from runtime.source import check_source, open_source
from runtime.source_image import ImageInput, MaskInput
from runtime.steps import Progress, Rows, of_all, of_images
from runtime.vae import TILING, Tiling, decode, encode
from runtime.variation import Noise, noise_of

Float32 = npt.NDArray[np.float32]

DEFAULT_BATCH_SIZE = 1
MAX_SIDE = 2**14


class TextToImage(Pipeline):
    """A bundle that draws what a text says."""

    def __init__(
        self,
        bundle: Bundle,
        networks: Networks,
        provider_reason: str,
        conditioning: TextConditioning,
        latents: Latents,
        tiles: Tiling | None = None,
        embeddings: Embeddings | None = None,
    ) -> None:
        super().__init__(bundle, networks, provider_reason)
        self.conditioning, self.latents, self.tiles, self.embeddings = conditioning, latents, tiles, embeddings

    def request(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        width: int | None = None,
        height: int | None = None,
        num_images_per_prompt: int = 1,
        clip_skip: int | None = None,
        image: ImageInput | None = None,
        mask: MaskInput | None = None,
        **settings: Any,
    ) -> Request:
        """Images of prompts.

        Args:
            prompt: one or several; images of the same prompt follow each other.
            negative_prompt: what guidance leads away from; one for all, or one for each prompt. None is the empty one.
            width, height: pixels, multiples of the latents' factor; without them those of ``image``, cut to such
                multiples, or the bundle's defaults.
            num_images_per_prompt: image k of all has seed + k.
            clip_skip: last layers of the text encoder to leave out, for negative prompts too (where diffusers leaves
                out none); without it the bundle's default.
            image: to begin at instead of noise alone (Meng et al. 2022, "SDEdit"), see ``open_image``; it is scaled and
                cut to the size. ``strength`` in ``settings`` says how much of it changes, from 0 to 1 (default 0.8).
            mask: what of the image is drawn anew, see ``open_mask``: white, and the rest is kept; ``strength`` is 1
                unless it is given. A model that fills in parts of pictures takes nothing without one.
            settings: extend and paste_back, as ``recipe`` takes them; sampler, num_inference_steps, guidance_scale,
                seed, rng, batch_size (default 1), variation_seed, variation_strength and plan, as
                ``Pipeline.settings`` takes them, and options of the sampler; and for a second pass at a larger size
                upscale, upscale_by, upscale_strength and upscale_steps, see ``Upscale``.

        Raises:
            RequestError: an argument is out of range; nothing has been computed then.
        """
        prompts = self.conditions(prompt, negative_prompt, num_images_per_prompt)
        recipe = self.recipe(width=width, height=height, clip_skip=clip_skip, image=image, mask=mask, **settings)
        conditions = recipe.settings.varied(prompts)
        return recipe, conditions, recipe.settings.seeds(len(conditions))

    def recipe(
        self,
        *,
        width: int | None = None,
        height: int | None = None,
        clip_skip: int | None = None,
        image: ImageInput | None = None,
        mask: MaskInput | None = None,
        extend: Mapping[str, int] | None = None,
        paste_back: bool = True,
        **settings: Any,
    ) -> Recipe:
        """How images are made; the arguments are those of a call.

        Args:
            width, height, clip_skip, image, mask, settings: as a call takes them.
            extend: pixels by which the image grows, by side ("left", "top", "right", "bottom"). They are drawn anew.
            paste_back: lay the image's own pixels over the finished one where it is kept, fading at the border, since
                the VAE loses their finest detail. Without, all is as the VAE decodes it.
        """
        upscale, settings = take_upscale(settings)
        source = open_source(image, mask, extend)
        check_source(source, self.bundle, sized=width is not None and height is not None)
        width, height = self.check_size(width, height, source.image)
        clip_skip = self.check_clip_skip(clip_skip)
        begun, masked = source.image is not None, source.mask is not None
        if upscale is not None and masked:
            kept, which = ("mask", "the mask") if mask is not None else ("extension", "extend")
            raise RequestError(f"a second pass draws anew what the {kept} keeps, too; leave out upscale, or {which}")
        chosen = self.settings(DEFAULT_BATCH_SIZE, from_image=begun, masked=masked, **settings)
        begin = source.fit(width, height)
        metadata = self.metadata(chosen, begin.image) | begin.metadata(paste_back)
        metadata |= {"width": width, "height": height, "clip_skip": clip_skip}
        second = None
        if upscale is not None:
            second = second_pass(self, upscale, width, height, chosen, settings)
            metadata |= described(upscale, second)
        shape = self.latent_shape(width, height)
        return Recipe(chosen, shape, metadata, begin.image, begin.mask, paste_back, second)

    def drawn(
        self,
        recipe: Recipe,
        conditions: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> Rows[Result]:
        """Draw an image for each prompt with its negative prompt, and for each seed, (B,) both."""
        made = recipe.metadata | self.told_of_tiles(recipe)
        region = region_of(recipe, self.bundle, self.encode_pixels)
        original = original_of(recipe, region, self.encode_pixels)
        groups = self.encode(conditions, made["clip_skip"], recipe.guided)
        batches = [-(-len(group.images) // recipe.settings.batch_size) for group in groups]
        sample = np.empty((len(seeds), *recipe.last_shape), np.float32)
        for group, before in zip(groups, itertools.accumulate(batches, initial=0), strict=False):
            told = of_all(progress, before * recipe.rows, sum(batches) * recipe.rows)
            own = [noise_of(seeds[k], conditions[k]) for k in group.images]
            rows = self.passes(recipe, group.conditioning, own, told, original, region)
            sample[group.images] = yield from of_images(rows, group.images)
        images = with_own_pixels(self.decode(sample), recipe, self.bundle)
        return Result(images, sample, tuple(seeds), tuple(conditions), made)

    def within(self, memory: MemoryPlan) -> TextToImage:
        """As of any pipeline; the tokenizer is read once, for this request and those to come."""
        _ = self.tokenizer
        return super().within(memory)

    def told_of_tiles(self, recipe: Recipe) -> dict[str, Any]:
        """What a picture says of the tiles of its VAE, unless ``low_memory`` says it."""
        usual = TILING if self.networks.low_memory else None
        larger = self.tiles is not None and max(recipe.last_shape[1:]) > self.tiles.tile
        return {"vae_tile": self.tiles.tile} if self.tiles is not None and larger and self.tiles != usual else {}

    def preview(self, pred_original_sample: Float32) -> UInt8 | None:
        """Latents (B, C, h, w) as images uint8 (B, h, w, 3) by the bundle's linear map, if it has one."""
        return preview_latents(self.latents, pred_original_sample)

    def passes(
        self,
        recipe: Recipe,
        conditioning: Conditioning,
        noises: Sequence[Noise],
        progress: Progress | None,
        original: Float32 | None,
        region: Region,
    ) -> Rows[Float32]:
        """Latents float32 (B, C, h, w) of one group: those of the first pass or, if there is one, of the second."""
        first = recipe.settings, noises, recipe.shape, progress
        sample = yield from self.sample(conditioning, *first, original, region)
        if recipe.second is None:
            return sample
        settings, shape = recipe.second.settings, recipe.second.shape
        done = recipe.settings.rows * -(-len(noises) // settings.batch_size)
        begin = enlarge(sample, recipe.second, self.decode, self.encode_pixels)
        told = of_all(progress, done, 0)
        return (yield from self.sample(conditioning, settings, noises, shape, told, begin))

    @cached_property
    def tokenizer(self) -> PromptTokenizer:
        """Read when it is first needed."""
        return PromptTokenizer(self.bundle, self.conditioning, self.embeddings)

    def with_embeddings(self, embeddings: EmbeddingInput) -> TextToImage:
        """A pipeline whose prompts may name learned words (textual inversion); this one stays as it is.

        Both share their graphs, so it costs nothing, and other threads may be drawing.

        Args:
            embeddings: a file or a folder, a mapping from names to files, or a sequence of files, folders and pairs
                (name, file), instead of those that there were. See ``docs/prompts.md`` for names and kinds of files.

        Raises:
            RequestError: a file is missing, damaged, or none of an embedding; one is for another model, or called like
                another; or the text encoder takes none.
        """
        opened = open_embeddings(embeddings, self.bundle, self.conditioning)
        shared = self.bundle, self.networks, self.provider_reason, self.conditioning, self.latents, self.tiles
        return TextToImage(*shared, opened)

    def encode(self, conditions: Sequence[Mapping[str, Any]], clip_skip: int, guided: bool = True) -> list[Group]:
        """What the U-Net is told of prompts and their negatives, see ``encode_prompts``."""
        encoder = self.networks.session("text_encoder").for_the_last_time()
        return encode_prompts(encoder, self.tokenizer, conditions, clip_skip, guided)

    def encode_pixels(self, sample: Float32) -> Float32:
        """An image of the size to be drawn, float32 (3, H, W), as the mean of its latents, float32 (C, h, w).

        Raises:
            RequestError: the encoder's numbers are not finite.
        """
        encoder = self.networks.session("vae_encoder").for_the_last_time()
        latents = self.latents
        encoded = encode(encoder, sample, latents.scaling_factor, latents.factor, self.tiles)
        if not np.isfinite(encoded).all():
            remedy = self.another_vae("vae_encoder")
            raise RequestError(f"the VAE makes latents of the picture whose numbers are not finite; {remedy}")
        return encoded

    def decode(self, latents: Float32) -> UInt8:
        """Latents float32 (B, C, h, w) as images uint8 (B, H, W, 3), one by one.

        Raises:
            RequestError: the decoder's numbers are not finite, which no picture could show.
        """
        decoder = self.networks.session("vae_decoder")
        images = []
        for k, each in enumerate(latents):
            if k == len(latents) - 1:
                decoder = decoder.for_the_last_time()
            pixels = decode(decoder, each, self.latents.scaling_factor, self.latents.factor, self.tiles)
            if not np.isfinite(pixels).all():
                remedy = self.another_vae("vae_decoder")
                raise RequestError(f"the VAE makes image {k + 1} of {len(latents)} of numbers not finite; {remedy}")
            images.append(to_uint8(pixels[None]))
        return np.concatenate(images)

    def another_vae(self, role: str) -> str:
        """What helps where the VAE's numbers are not finite."""
        return self.networks.wider(role) or "export the model again with another VAE (--vae)"

    def roles(self, recipe: Recipe) -> list[str]:
        """The networks that make an image, in their order."""
        encodes = recipe.image is not None or (recipe.second is not None and recipe.second.by == PIXELS)
        return [*["vae_encoder"] * encodes, "text_encoder", *["unet"] * (recipe.rows > 0), "vae_decoder"]

    def conditions(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
    ) -> tuple[dict[str, Any], ...]:
        """Prompt, negative prompt and the learned words in them for every image; the arguments are those of a call.

        Raises:
            RequestError: no prompt, one that is no text, another number of negative prompts, or no images; or a learned
                word's file cannot be read, or is for another model.
        """
        prompts, negatives = texts(prompt), texts("" if negative_prompt is None else negative_prompt)
        if not prompts:
            raise RequestError("there is no prompt to draw; give at least one")
        if isinstance(negative_prompt, str | None):
            negatives = negatives * len(prompts)
        if len(prompts) != len(negatives):
            raise RequestError(f"{len(prompts)} prompts have {len(negatives)} negative prompts; give one, or as many")
        check_whole("num_images_per_prompt", num_images_per_prompt, least=1)
        check_whole("the number of images", len(prompts) * num_images_per_prompt, least=1, most=MAX_IMAGES)
        pairs = [dict(zip(PROMPTS, pair, strict=True)) for pair in zip(prompts, negatives, strict=True)]
        told = [pair | self.learned(pair.values()) for pair in pairs]
        return tuple(each for each in told for _ in range(num_images_per_prompt))

    def learned(self, prompts: Iterable[str]) -> dict[str, Any]:
        """What an image's conditions say of the learned words in its prompts: nothing where there are none."""
        found = [] if self.embeddings is None else self.embeddings.described(prompts)
        return {"embeddings": found} if found else {}

    def check_size(self, width: int | None, height: int | None, image: Image | None = None) -> tuple[int, int]:
        """Width and height, what was not said filled in: from the image to begin at, or by default.

        Raises:
            RequestError: one is no multiple of the latents' factor, or not within reason.
        """
        factor, defaults = self.latents.factor, self.bundle.defaults
        usual = (defaults.width, defaults.height)
        if image is not None:
            usual = (max(factor, image.width // factor * factor), max(factor, image.height // factor * factor))
        width, height = usual[0] if width is None else width, usual[1] if height is None else height
        for name, value in (("width", width), ("height", height)):
            check_whole(name, value, least=factor, most=MAX_SIDE)
            if value % factor:
                raise RequestError(
                    f"{name} is {value}; {self.bundle.name} draws multiples of {factor}: {value - value % factor}"
                )
        return width, height

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a size in pixels."""
        return self.latents.channels, height // self.latents.factor, width // self.latents.factor

    def check_clip_skip(self, clip_skip: int | None) -> int:
        most = self.conditioning.num_hidden_layers
        chosen = self.conditioning.clip_skip if clip_skip is None else clip_skip
        check_whole("clip_skip", chosen, least=0, most=most)
        return chosen
