"""The sampling loop.

Shapes: B images in a batch, C H W the shape of one sample, N rows of the plan.

``Pipeline.denoise`` is the loop of ``docs/bundle.md``, nothing more; everything else prepares its arguments or keeps
its results. A pipeline holds no state between calls, so one serves many threads.
"""

from __future__ import annotations

import math
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle, open_bundle
from runtime.engine import import_engine
from runtime.errors import RequestError
from runtime.image import FORMATS, UInt8, check_writable, encode_image, make_grid, to_uint8, write_file
from runtime.noise import GENERATORS, NoiseGenerator, image_seed, noise_generator
from runtime.plan import Float64, Plan, compile_plan, is_finite_number
from runtime.session import Array, Session, as_inputs, choose_provider

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

HISTORY = 4  # samples and outputs that a row may look back on, its own included
DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True)
class Step:
    """What ``denoise`` yields after each row.

    Attributes:
        row: rows done, 1 .. rows.
        rows: N.
        sample: x after this row, float32 (B, C, H, W).
        pred_original_sample: what the network takes the finished sample to be, float32 (B, C, H, W).
    """

    row: int
    rows: int
    sample: Float32
    pred_original_sample: Float32


@dataclass(frozen=True)
class Result:
    """Finished images and what made them.

    Attributes:
        images: uint8 (B, H, W, C).
        sample: the same before rounding, float32 (B, C, H, W).
        class_labels: int64 (B,).
        seeds: one for each image.
        metadata: everything needed to draw them again.
    """

    images: UInt8
    sample: Float32
    class_labels: Int64
    seeds: tuple[int, ...]
    metadata: dict[str, Any]

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> list[Path]:
        """Write one file, or for several images ``name-1.png``, ``name-2.png`` ...; each carries its own metadata.

        Raises:
            RequestError: unknown suffix, missing folder, or a file that exists.
        """
        paths = image_paths(path, len(self.images))
        for each in paths:
            check_writable(each, overwrite)
        for k, each in enumerate(paths):
            own = self.metadata | {"seed": self.seeds[k], "class_label": int(self.class_labels[k])}
            write_file(each, encode_image(self.images[k], each.suffix.lower(), own))
        return paths

    def save_grid(self, path: str | os.PathLike[str], columns: int | None = None, overwrite: bool = False) -> Path:
        """Write all images on one sheet; without ``columns`` it is about as wide as high.

        Raises:
            RequestError: unknown suffix, missing folder, or a file that exists.
        """
        base = image_path(path)
        check_writable(base, overwrite)
        sheet = make_grid(self.images, columns or math.ceil(math.sqrt(len(self.images))))
        own = self.metadata | {"seeds": list(self.seeds), "class_labels": self.class_labels.tolist()}
        write_file(base, encode_image(sheet, base.suffix.lower(), own))
        return base


def image_path(path: str | os.PathLike[str]) -> Path:
    base = Path(path)
    if base.suffix.lower() not in FORMATS:
        raise RequestError(f"{base} has no suffix of a picture; use one of {', '.join(FORMATS)}")
    return base


def image_paths(path: str | os.PathLike[str], count: int) -> list[Path]:
    """The file for one image; for several ``name-1.png``, ``name-2.png`` ...

    Raises:
        RequestError: the suffix is none of a picture's.
    """
    base = image_path(path)
    return [base] if count == 1 else [base.with_stem(f"{base.stem}-{k + 1}") for k in range(count)]


def plan_for(
    bundle: Bundle, sampler: str | None = None, num_inference_steps: int | None = None, **options: Any
) -> Plan:
    """Compile a plan for a bundle; what is not said is the bundle's default, as far as that is for the same sampler.

    Raises:
        RequestError: an argument is unknown or out of range.
    """
    defaults = bundle.defaults
    if sampler in (None, defaults.sampler) and num_inference_steps is None:
        num_inference_steps = defaults.num_inference_steps
    return compile_plan(bundle.noise_schedule, sampler or defaults.sampler, num_inference_steps, **options)


def load(model: str | os.PathLike[str], provider: str = "auto", threads: int | None = None) -> Pipeline:
    """Open a bundle for drawing.

    Args:
        model: a bundle's folder, or its name (looked for in $DIFFUSION_ANYWHERE_MODELS, ./models_onnx and the package).
        provider: "cpu", "cuda" (raises if CUDA would not really be used) or "auto".
        threads: threads inside an operator; without it one for each core.

    Raises:
        BundleError: the bundle is missing, damaged or unknown.
        EngineError: ONNX Runtime is missing, doubled, or cannot use the provider.
    """
    bundle = open_bundle(model)
    chosen, why = choose_provider(provider)
    return Pipeline(bundle, Session(bundle, bundle.graph("unet"), chosen, threads), why)


class Pipeline:
    """A bundle ready to draw; made by ``load``."""

    def __init__(self, bundle: Bundle, unet: Session, provider_reason: str) -> None:
        self.bundle, self.unet, self.provider_reason = bundle, unet, provider_reason
        if bundle.pixels is None:
            raise RequestError(f"{bundle.name} works on latents, which this version does not draw yet")
        self.shape = (bundle.pixels.channels, bundle.pixels.height, bundle.pixels.width)

    def plan(self, sampler: str | None = None, num_inference_steps: int | None = None, **options: Any) -> Plan:
        """Compile a plan for this model; what is not said is the bundle's default.

        Raises:
            RequestError: an argument is unknown or out of range.
        """
        return plan_for(self.bundle, sampler, num_inference_steps, **options)

    def __call__(
        self,
        class_labels: int | Sequence[int],
        *,
        plan: Plan | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        rng: str = "philox",
        batch_size: int = DEFAULT_BATCH_SIZE,
        progress: Callable[[int, int], None] | None = None,
        **plan_options: Any,
    ) -> Result:
        """Draw one image for each label.

        Args:
            class_labels: 0 .. num_classes - 1, or num_classes for no class. plan: a compiled sampler; without it
            ``plan_options`` (sampler, num_inference_steps, eta ...) go to ``self.plan``. guidance_scale: s in uncond
            + s · (cond - uncond); 1 is off and halves the work. Without it the bundle's default. seed: of the first
            image; image k has seed + k. Without it one is drawn, and kept in the result. rng: "philox" or "torch".
            batch_size: images evaluated together. It changes time and memory, never a picture. progress: called with
            (rows done, rows in all) after each row. plan_options: see ``plan``.

        Raises:
            RequestError: an argument is out of range; nothing has been computed then.
        """
        labels = np.atleast_1d(np.asarray(class_labels))
        if labels.size and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
            raise RequestError(f"class_labels {class_labels!r} must be a whole number or a list of them")
        labels = labels.astype(np.int64)
        if plan is not None and plan_options:
            raise RequestError(f"give either a plan or {', '.join(plan_options)}, and not both")
        plan = plan or self.plan(**plan_options)
        guidance = self.bundle.defaults.guidance_scale if guidance_scale is None else guidance_scale
        seed = secrets.randbelow(2**32) if seed is None else seed
        self.check(labels, plan, guidance, rng)
        if batch_size < 1:
            raise RequestError(f"batch_size is {batch_size}; it must be at least 1")
        seeds = tuple(image_seed(seed, k) for k in range(len(labels)))
        rows = len(plan) * -(-len(labels) // batch_size)
        done = 0
        sample = np.empty((len(labels), *self.shape), np.float32)
        for begin in range(0, len(labels), batch_size):
            chosen = slice(begin, begin + batch_size)
            for step in self.denoise(labels[chosen], plan, guidance, seeds[chosen], rng):
                sample[chosen] = step.sample
                done += 1
                if progress:
                    progress(done, rows)
        return Result(to_uint8(sample), sample, labels, seeds, self.metadata(plan, guidance, rng))

    def denoise(
        self, class_labels: Int64, plan: Plan, guidance_scale: float, seeds: Sequence[int], rng: str = "philox"
    ) -> Iterator[Step]:
        """Walk the plan for one batch, yielding after every row; to stop, stop asking.

        Args:
            class_labels: int64 (B,).
            plan: the compiled sampler.
            guidance_scale: as in ``__call__``.
            seeds: one for each image.
            rng: "philox" or "torch".

        Raises:
            RequestError: an argument is out of range, or the sample ceased to be finite.
        """
        self.check(class_labels, plan, guidance_scale, rng)
        generators = [noise_generator(rng, seed) for seed in seeds]
        samples: deque[Float32] = deque(maxlen=HISTORY)
        outputs: deque[Float32] = deque(maxlen=HISTORY)
        samples.appendleft((plan.initial_scale * self.draw(generators).astype(np.float64)).astype(np.float32))
        for i in range(len(plan)):
            scale = 1 + float(plan.guidance[i]) * (guidance_scale - 1)
            outputs.appendleft(self.predict(samples[0], float(plan.timesteps[i]), class_labels, scale))
            noise = self.draw(generators) if plan.weights[i, -1] != 0 else None
            pred_original = combine(plan.x0_weights[i], [samples[0], outputs[0]])
            following = combine(plan.weights[i], [*padded(samples), *padded(outputs), noise])
            if not np.isfinite(following).all():
                raise RequestError(
                    f"row {i + 1} of {len(plan)} is no longer finite; guidance_scale {guidance_scale} is too large"
                )
            samples.appendleft(following)
            yield Step(i + 1, len(plan), following, pred_original)

    def predict(self, sample: Float32, timestep: float, class_labels: Int64, scale: float) -> Float32:
        """The guided output of the network for x, float32 (B, C, H, W) (Ho & Salimans 2022, eq. 6, with s = w + 1)."""
        if scale == 1:
            return self.evaluate(sample, timestep, class_labels)
        null = np.full_like(class_labels, self.bundle.conditioning.null_class)
        both = self.evaluate(np.concatenate([sample, sample]), timestep, np.concatenate([null, class_labels]))
        uncond, cond = np.split(both.astype(np.float64), 2)
        with np.errstate(over="ignore"):  # ``denoise`` refuses what is not finite
            return (uncond + scale * (cond - uncond)).astype(np.float32)

    def evaluate(self, sample: Float32, timestep: float, class_labels: Int64) -> Float32:
        """One run of the U-Net."""
        timesteps = np.full(len(sample), timestep, np.float32)
        inputs: dict[str, Array] = {"sample": sample, "timestep": timesteps, "class_labels": class_labels}
        out: Float32 = self.unet.run(**as_inputs(self.unet, inputs))["out_sample"]
        return out

    def draw(self, generators: Sequence[NoiseGenerator]) -> Float32:
        """The next draw of each image's noise, float32 (B, C, H, W)."""
        return np.stack([generator.draw(self.shape) for generator in generators])

    def check(self, class_labels: Int64, plan: Plan, guidance_scale: float, rng: str) -> None:
        """Refuse what cannot be drawn, before anything is.

        Raises:
            RequestError: with the value and what is allowed.
        """
        conditioning = self.bundle.conditioning
        if not len(class_labels):
            raise RequestError("there is no label to draw; give at least one")
        wrong = class_labels[(class_labels < 0) | (class_labels > conditioning.null_class)]
        if len(wrong):
            raise RequestError(
                f"label {wrong[0]} is out of range; {self.bundle.name} has 0 to {conditioning.num_classes - 1}, "
                f"and {conditioning.null_class} for none"
            )
        if not is_finite_number(guidance_scale):
            raise RequestError(f"guidance_scale is {guidance_scale}; it must be a finite number (1 is off)")
        if rng not in GENERATORS:
            raise RequestError(f"rng {rng!r} is unknown; choose {', '.join(GENERATORS)}")
        own_type = self.bundle.noise_schedule.prediction_type
        if plan.prediction_type != own_type:
            raise RequestError(f"the plan is for {plan.prediction_type} models; {self.bundle.name} predicts {own_type}")
        if plan.clip_sample is not None or plan.guidance_rescale:
            raise RequestError("the plan clips or rescales, which this version does not do; compile it without")

    def metadata(self, plan: Plan, guidance_scale: float, rng: str) -> dict[str, Any]:
        """What made a picture, as JSON values."""
        return {
            "bundle": self.bundle.name,
            "bundle_sha256": self.bundle.sha256,
            "sampler": plan.sampler,
            "num_inference_steps": plan.num_inference_steps,
            "options": dict(plan.options),
            "guidance_scale": guidance_scale,
            "rng": rng,
            "provider": self.unet.provider,
            "onnxruntime": import_engine().__version__,
        }


def padded(history: deque[Float32]) -> list[Float32 | None]:
    """The last four, newest first; None for those that do not exist yet."""
    return [*history, *[None] * (HISTORY - len(history))]


def combine(weights: Float64, terms: Sequence[Float32 | None]) -> Float32:
    """The weighted sum of a row: float64, left to right, rounded once; terms of weight zero do not count."""
    total: npt.NDArray[np.float64] | float = 0.0
    for weight, term in zip(weights, terms, strict=True):
        if weight != 0:
            if term is None:
                raise RequestError("the plan looks back further than its first row; it was not made by this program")
            total = total + float(weight) * term.astype(np.float64)
    return np.asarray(total).astype(np.float32)
