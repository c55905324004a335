"""The sampling loop, which knows nothing of texts or classes.

Shapes: B images in a batch, C H W the shape of one sample (of pixels or of latents), N rows of the plan.

``Pipeline.walk`` is the loop of ``docs/bundle.md``, nothing more; ``text_to_image`` and ``class_to_image`` prepare
its arguments. A pipeline holds no state between calls but the graphs it has loaded, so one serves many threads.
"""

from __future__ import annotations

import copy
import hashlib
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from runtime.arithmetic import clip_original, combine, first_sample
from runtime.bundle import Bundle
from runtime.cancel import CancelToken, check_limits, stoppable
from runtime.conditioning import Told
from runtime.engine import import_engine
from runtime.errors import RequestError
from runtime.image import UInt8
from runtime.inpainting import EVERYWHERE, Region
from runtime.limits import check_choice, check_whole, is_finite_number
from runtime.memory import MemoryPlan
from runtime.memory_plan import plan_request
from runtime.model_plan import check_plan, plan_for, plan_sha256
from runtime.networks import Networks
from runtime.noise import GENERATORS, draw_each, image_seed
from runtime.plan import Plan
from runtime.prediction import predict
from runtime.recipe import Recipe, Settings, with_strength
from runtime.result import Result
from runtime.steps import Progress, Row, Rows, Step, finished, steps
from runtime.vae import Tiling
from runtime.variation import Noise, generator_of, variation_of
from runtime.version import __version__

Float32 = npt.NDArray[np.float32]

HISTORY = 4  # samples and outputs that a row may look back on, its own included


Request = tuple[Recipe, Sequence[Mapping[str, Any]], Sequence[int]]
"""What ``Pipeline.draw`` takes: how images are made, what each shows, and its seed."""


class Pipeline(ABC):
    """A bundle ready to draw; ``runtime.load`` makes the one that fits.

    Attributes:
        bundle, networks: the model, and its graphs in memory.
        provider_reason: why they run where they do.
        tiles: how a VAE divides what is larger than a tile; None for not at all.
    """

    tiles: Tiling | None = None

    def __init__(self, bundle: Bundle, networks: Networks, provider_reason: str) -> None:
        self.bundle, self.networks, self.provider_reason = bundle, networks, provider_reason

    def __call__(
        self,
        *conditions: Any,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> Result:
        """Draw.

        Args:
            conditions, settings: as ``request`` takes them.
            progress: called with (rows done, rows in all) after each row.
            cancel: whose ``cancel``, in another thread, stops the call within one operator of a network.
            timeout: seconds, after which the call is stopped so.

        Raises:
            RequestError: an argument is out of range, and nothing has been computed; or a network's numbers are no
                longer finite.
            Cancelled, TimedOut: the call was stopped. The pipeline can be used again.
        """
        with stoppable(cancel, timeout):
            return self.draw(*self.request(*conditions, **settings), progress)

    def denoise(
        self, *conditions: Any, cancel: CancelToken | None = None, timeout: float | None = None, **settings: Any
    ) -> Iterator[Step]:
        """Draw step by step; who wants no more stops asking. The arguments are those of a call.

        What a call draws is ``result()`` of the last step, to the bit.

        Args:
            conditions, cancel, settings: as a call takes them.
            timeout: seconds from the first step that is asked for to the end of the loop.

        Raises:
            RequestError: at once, an argument is out of range; later, as a call.
            Cancelled, TimedOut: it was stopped.
        """
        check_limits(cancel, timeout)
        request = self.request(*conditions, **settings)
        return steps(partial(self.drawing, *request), self.preview, cancel, timeout)

    @abstractmethod
    def request(self, *conditions: Any, **settings: Any) -> Request:
        """What a call asks for, with every default filled in, and checked; nothing is computed.

        Raises:
            RequestError: an argument is out of range.
        """

    @abstractmethod
    def check_size(self, width: int | None, height: int | None, image: Image | None = None) -> tuple[int, int]:
        """Width and height in pixels, with what was not said filled in: from the image to begin at, or by default.

        Raises:
            RequestError: the model draws no such size.
        """

    @abstractmethod
    def recipe(self, **settings: Any) -> Recipe:
        """Fill in the defaults of a request, and check it; nothing is computed.

        Raises:
            RequestError: an argument is out of range.
        """

    def draw(
        self,
        recipe: Recipe,
        conditions: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> Result:
        """Draw an image for each of the conditions, as ``Result.conditions`` has them, and of the seeds, (B,) both.

        Raises:
            RequestError: there is too little memory, or a network's numbers are no longer finite.
        """
        return finished(self.drawing(recipe, conditions, seeds, progress))

    def drawing(
        self,
        recipe: Recipe,
        conditions: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> Rows[Result]:
        """As ``draw``, row by row; ``progress`` is told of each before it is yielded."""
        memory = plan_request(self.bundle, self.networks, recipe, self.roles(recipe), len(seeds), self.tiles)
        recipe = recipe.in_batches(memory.batch_size)
        with self.networks.dropped_if_stopped():
            return (yield from self.within(memory).drawn(recipe, conditions, seeds, progress))

    @abstractmethod
    def drawn(
        self,
        recipe: Recipe,
        conditions: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> Rows[Result]:
        """As ``drawing``, in whatever memory it takes."""

    @abstractmethod
    def roles(self, recipe: Recipe) -> list[str]:
        """The networks that make an image, in their order."""

    def within(self, memory: MemoryPlan) -> Self:
        """This pipeline as one request draws with it: the same graphs, held as the plan of its memory says."""
        drawer = copy.copy(self)
        drawer.networks, drawer.tiles = self.networks.within(memory.one_network, memory.in_turn), memory.tiles
        return drawer

    @abstractmethod
    def preview(self, pred_original_sample: Float32) -> UInt8 | None:
        """What a sample (B, C, H, W) looks like, at once; None where nothing but the decoder could tell."""

    def plan(self, sampler: str | None = None, num_inference_steps: int | None = None, **options: Any) -> Plan:
        """Compile a plan for this model; what is not said is the bundle's default.

        Raises:
            RequestError: an argument is unknown or out of range.
        """
        return plan_for(self.bundle, sampler, num_inference_steps, **options)

    def settings(
        self,
        default_batch_size: int,
        /,
        plan: Plan | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        rng: str = "philox",
        batch_size: int | None = None,
        variation_seed: int | None = None,
        variation_strength: float | None = None,
        from_image: bool = False,
        masked: bool = False,
        **plan_options: Any,
    ) -> Settings:
        """Fill in the defaults of a request, and check it.

        Args:
            default_batch_size: without ``batch_size``.
            plan: a compiled sampler; without it ``plan_options`` (sampler, num_inference_steps, eta ...) go to
                ``self.plan``.
            guidance_scale: s in uncond + s · (cond - uncond); 1 is off and halves the work.
            seed: of the first image; image k has seed + k. Without it one is drawn.
            rng: "philox" or "torch".
            batch_size: images evaluated together. It changes time and memory, never a picture.
            variation_seed, variation_strength: draw 0 of image k lies between that of the seed, then the same for all
                images, and that of variation_seed + k, see ``slerp``; strength 0 is off.
            from_image: whether there is an image to begin at. Then ``strength`` is among the options, the share of the
                steps that are taken; without it, and without a plan, 0.8. With 0 the image is only encoded and decoded.
            masked: whether a part of that image is drawn anew; ``strength`` is 1 then unless it is given.

        Raises:
            RequestError: an argument is out of range.
        """
        plan_options, untouched = with_strength(plan_options, from_image, plan is not None, masked)
        if plan is not None and plan_options:
            raise RequestError(f"give either a plan or {', '.join(plan_options)}, and not both")
        given, plan = plan, self.plan(**plan_options) if plan is None else plan
        guidance = self.bundle.defaults.guidance_scale if guidance_scale is None else guidance_scale
        seed = secrets.randbelow(2**32) if seed is None else image_seed(seed, 0)
        batch_size = default_batch_size if batch_size is None else batch_size
        check_whole("batch_size", batch_size, least=1)
        variation = variation_of(variation_seed, variation_strength)
        self.check(plan, guidance, rng, from_image)
        sha256 = None if given is None else plan_sha256(given)
        return Settings(plan, guidance, seed, rng, batch_size, sha256, untouched, variation)

    def check(self, plan: Plan, guidance_scale: float, rng: str, from_image: bool = False) -> None:
        """Refuse what cannot be sampled, before anything is.

        Raises:
            RequestError: with the value and what is allowed.
        """
        if not isinstance(plan, Plan):
            raise RequestError(f"plan is {plan!r}; it must be a Plan, as compile_plan and Plan.from_json make them")
        if not is_finite_number(guidance_scale):
            raise RequestError(f"guidance_scale is {guidance_scale}; it must be a finite number (1 is off)")
        check_choice("rng", rng, GENERATORS)
        check_plan(self.bundle, plan, from_image)

    def sample(
        self,
        conditioning: Told,
        settings: Settings,
        seeds: Sequence[Noise],
        shape: tuple[int, ...],
        progress: Progress | None = None,
        original_sample: Float32 | None = None,
        region: Region = EVERYWHERE,
    ) -> Rows[Float32]:
        """The last x of each image, float32 (images, C, H, W), drawn in batches; the arguments are ``walk``'s."""
        if settings.untouched and original_sample is not None:
            return np.broadcast_to(original_sample, (len(seeds), *shape)).copy()
        sample = np.empty((len(seeds), *shape), np.float32)
        rows = len(settings.plan) * -(-len(seeds) // settings.batch_size)
        done = 0
        for begin in range(0, len(seeds), settings.batch_size):
            chosen = slice(begin, begin + settings.batch_size)
            sampler = settings.plan, settings.guidance_scale, seeds[chosen], settings.rng
            own = list(range(len(seeds))[chosen])
            begun = original_sample
            if begun is not None and begun.ndim > len(shape):
                begun = begun[chosen]
            for row in self.walk(conditioning[chosen], *sampler, shape, begun, region):
                sample[chosen] = row.sample
                done += 1
                if progress:
                    progress(done, rows)
                yield row.of(own)
        return sample

    def walk(
        self,
        conditioning: Told,
        plan: Plan,
        guidance_scale: float,
        seeds: Sequence[Noise],
        rng: str,
        shape: tuple[int, ...],
        original_sample: Float32 | None = None,
        region: Region = EVERYWHERE,
    ) -> Iterator[Row]:
        """Walk the plan for one batch, yielding after every row; to stop, stop asking.

        Args:
            conditioning: the U-Net's other inputs, B rows.
            plan: the compiled sampler.
            guidance_scale: s in uncond + s · (cond - uncond).
            seeds: one for each image, (B,), or noise between those of two.
            rng: "philox" or "torch".
            shape: of one sample, (C, H, W).
            original_sample: where to begin instead of at noise alone, float32 (C, H, W), or one for each, (B, C, H, W):
                an image, or its latents. The plan says how much noise is added to it.
            region: what of ``original_sample`` is drawn anew.

        Raises:
            RequestError: an argument is out of range, or the sample ceased to be finite.
        """
        self.check(plan, guidance_scale, rng, original_sample is not None)
        unet = self.networks.session("unet")
        generators = [generator_of(rng, seed) for seed in seeds]
        samples: deque[Float32] = deque(maxlen=HISTORY)
        outputs: deque[Float32] = deque(maxlen=HISTORY)
        first_noise = draw_each(generators, shape)
        begin = None if region.begins_at_noise(plan) else original_sample
        samples.appendleft(first_sample(plan, first_noise, begin))
        for i in range(len(plan)):
            scale = 1 + float(plan.guidance[i]) * (guidance_scale - 1)
            if i == len(plan) - 1:
                unet = unet.for_the_last_time()
            taken = region.network_input(samples[0])
            output = predict(unet, taken, float(plan.timesteps[i]), conditioning, scale, plan, self.networks.in_turn)
            pred_original = combine(plan.x0_weights[i], [samples[0], output])
            if plan.clip_sample is not None:
                output, pred_original = clip_original(plan.x0_weights[i], samples[0], output, plan.clip_sample)
            outputs.appendleft(output)
            noise = draw_each(generators, shape) if plan.weights[i, -1] != 0 else None
            following = combine(plan.weights[i], [*padded(samples), *padded(outputs), noise])
            following = region.with_kept(following, plan, i, first_noise, original_sample)
            if not np.isfinite(following).all():
                remedy = self.networks.wider("unet") or f"guidance_scale {guidance_scale} is too large"
                raise RequestError(f"row {i + 1} of {len(plan)} is no longer finite; {remedy}")
            samples.appendleft(following)
            yield Row(following, pred_original, tuple(range(len(seeds))))

    def metadata(self, settings: Settings, image: Image | None = None) -> dict[str, Any]:
        """What made a picture, as JSON values.

        ``plan_sha256`` is there for a plan that was given, ``image_sha256`` for an image to begin at: of its pixels,
        8 bits each, row by row, red, green and blue, at the size that was drawn.
        """
        given = {} if settings.plan_sha256 is None else {"plan_sha256": settings.plan_sha256}
        if image is not None:
            given["image_sha256"] = hashlib.sha256(image.tobytes()).hexdigest()
        return given | {
            "bundle": self.bundle.name,
            "bundle_sha256": self.bundle.sha256,
            "variant": self.networks.variant or self.networks.variant_of("unet"),
            "low_memory": self.networks.low_memory,
            "sampler": settings.plan.sampler,
            "num_inference_steps": settings.plan.num_inference_steps,
            "options": dict(settings.plan.options) | ({"strength": 0} if settings.untouched else {}),
            "guidance_scale": settings.guidance_scale,
            "rng": settings.rng,
            "provider": self.networks.provider,
            "onnxruntime": import_engine().__version__,
            "version": __version__,
        }


def padded(history: deque[Float32]) -> list[Float32 | None]:
    """The last four, newest first; None for those that do not exist yet."""
    return [*history, *[None] * (HISTORY - len(history))]
