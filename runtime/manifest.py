"""The strict reader of manifests: ``docs/bundle.md`` in code. What it does not know, it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import (
    FORMAT_VERSION,
    MANIFEST,
    PLAIN_NAME,
    Bundle,
    ClassConditioning,
    Defaults,
    File,
    GraphVariant,
    Initializer,
    Latents,
    Pixels,
    PreviewMap,
    TensorSpec,
    TextConditioning,
)
from runtime.errors import BundleError, RequestError
from runtime.fields import Fields, T
from runtime.limits import is_finite_number
from runtime.plan import PREDICTION_TYPES, SPACINGS, NoiseSchedule, Plan
from runtime.signatures import check_graphs

FAMILIES = ("class-conditional-ddpm", "stable-diffusion-1")
UNET_INPUTS = ("sample", "mask", "masked_sample")
DTYPES = ("float32", "float16", "int64", "int32")


def read_manifest(value: object, folder: Path, sha256: str = "") -> Bundle:
    """Check a manifest's JSON value against the format.

    Raises:
        BundleError: a key is missing or unknown, or a value out of range.
    """
    fields = Fields(value, str(folder / MANIFEST))
    version = fields.take("format_version", int)
    if version != FORMAT_VERSION:
        raise BundleError(f"{fields.where} has format_version {version}; this program reads {FORMAT_VERSION}")
    name = fields.take("name", str)
    if not re.fullmatch(PLAIN_NAME, name):  # hosts make addresses and folders of it
        raise BundleError(
            f"{fields.where}: name {name!r} may hold letters, digits, '.', '_' and '-' only, and begin with no '.'"
        )
    bundle = Bundle(
        folder=folder,
        name=name,
        family=fields.one_of("family", FAMILIES),
        provenance=fields.child(fields.take("provenance", dict), "provenance", read_provenance),
        graphs=read_graphs(fields),
        noise_schedule=fields.child(fields.take("noise_schedule", dict), "noise_schedule", read_noise_schedule),
        pixels=optional(fields, "pixels", read_pixels),
        latents=optional(fields, "latents", read_latents),
        unet_input=tuple(fields.objects("unet_input", read_unet_input)),
        conditioning=fields.child(fields.take("conditioning", dict), "conditioning", read_conditioning),
        defaults=fields.child(fields.take("defaults", dict), "defaults", read_defaults),
        plans=read_plans(fields),
        sha256=sha256,
    )
    fields.finish()
    check_consistency(bundle, fields.where)
    check_plan_names(bundle, fields.where)
    check_graphs(bundle, fields.where)
    return bundle


def check_consistency(bundle: Bundle, where: str) -> None:
    """What parts that are right by themselves can still have wrong together.

    Raises:
        BundleError: the conditioning, the pixels or the channels are not what the family and the U-Net have.
    """
    if (bundle.pixels is None) == (bundle.latents is None):
        raise BundleError(f"{where}: exactly one of pixels and latents must be null")
    is_text = isinstance(bundle.conditioning, TextConditioning)
    if is_text != (bundle.family == "stable-diffusion-1") or is_text != (bundle.latents is not None):
        raise BundleError(
            f"{where}: family {bundle.family} does not go with this conditioning; "
            "stable-diffusion-1 has text and latents, class-conditional-ddpm has classes and pixels"
        )
    shape = bundle.pixels or bundle.latents
    channels = sum(count for _, count in bundle.unet_input)
    own = dict(bundle.unet_input).get("sample")
    if shape and own != shape.channels:
        raise BundleError(f"{where}: unet_input has {own} channels of sample where the model has {shape.channels}")
    further = {"mask": 1, "masked_sample": own}
    names = [name for name, _ in bundle.unet_input]
    for name, count in bundle.unet_input:
        if names.count(name) > 1 or count != further.get(name, count):
            raise BundleError(
                f"{where}: unet_input has {name} of {count} channels; once, and of {further.get(name, own)}"
            )
    if bundle.pixels and channels != bundle.pixels.channels:
        raise BundleError(f"{where}: unet_input has {channels} channels where pixels has {bundle.pixels.channels}")


def check_plan_names(bundle: Bundle, where: str) -> None:
    """A host without samplers finds its plan by name, so the names must say what the plans are.

    Raises:
        BundleError: there is no plan of the defaults, or a name does not end with its plan's number of steps.
    """
    default = f"{bundle.defaults.sampler}-{bundle.defaults.num_inference_steps}"
    if default not in bundle.plans:
        raise BundleError(f"{where}: plans lacks {default!r}, which is the default sampler at its default steps")
    for name, plan in bundle.plans.items():
        if not re.fullmatch(rf"[\w.-]+-{plan.num_inference_steps}", name, re.ASCII):
            raise BundleError(
                f"{where}: plans: {name!r} must be SAMPLER-STEPS, and it has {plan.num_inference_steps} steps"
            )


def optional(fields: Fields, key: str, read: Callable[[Fields], T]) -> T | None:
    value = fields.take(key, dict, type(None))
    return None if value is None else fields.child(value, key, read)


def read_provenance(fields: Fields) -> dict[str, Any]:
    return {
        "source": fields.take("source", str),
        "sha256": fields.take("sha256", str),
        "licence": fields.take("licence", str),
        "training": fields.take("training", dict, type(None)),
        "exporter": fields.take("exporter", dict),
    }


def read_graphs(fields: Fields) -> dict[str, dict[str, GraphVariant]]:
    roles = fields.take("graphs", dict)
    return {role: Fields(roles, f"{fields.where}: graphs").mapping(role, read_graph) for role in roles}


def read_file(fields: Fields) -> File:
    name = fields.take("file", str)
    if not re.fullmatch(PLAIN_NAME, name):
        raise BundleError(f"{fields.where}: file {name!r} must be a plain name inside the bundle's folder")
    sha256 = fields.take("sha256", str)
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise BundleError(f"{fields.where}: sha256 {sha256!r} must be 64 hexadecimal digits")
    return File(name, fields.count("size"), sha256)


def read_graph(fields: Fields) -> GraphVariant:
    return GraphVariant(
        file=read_file(fields),
        external_data=tuple(fields.objects("external_data", read_file)),
        inputs=tuple(fields.objects("inputs", read_tensor)),
        outputs=tuple(fields.objects("outputs", read_tensor)),
        providers=fields.strings("providers"),
        opset=fields.count("opset"),
        parity=fields.take("parity", dict),
        initializers=fields.mapping(
            "initializers", lambda weight: Initializer(weight.take("name", str), weight.take("transposed", bool))
        ),
    )


def read_tensor(fields: Fields) -> TensorSpec:
    shape = fields.take("shape", list)
    for size in shape:
        if not isinstance(size, str) and not (isinstance(size, int) and not isinstance(size, bool) and size > 0):
            raise BundleError(f"{fields.where}: shape {shape} must hold positive numbers and names only")
    return TensorSpec(fields.take("name", str), fields.one_of("dtype", DTYPES), tuple(shape))


def read_noise_schedule(fields: Fields) -> NoiseSchedule:
    count = fields.count("num_train_timesteps", most=10**6)
    numbers = fields.take("alphas_cumprod", list)
    if len(numbers) != count or not all(isinstance(x, int | float) and 0 <= x <= 1 for x in numbers):
        raise BundleError(f"{fields.where}: alphas_cumprod must be {count} numbers from 0 to 1")
    alphas_cumprod = np.asarray(numbers, dtype=np.float64)
    if (np.diff(alphas_cumprod) >= 0).any() or alphas_cumprod[0] == 1:
        raise BundleError(f"{fields.where}: alphas_cumprod must decrease, from below 1")
    fields.take("betas", dict)
    return NoiseSchedule(
        alphas_cumprod=alphas_cumprod,
        prediction_type=fields.one_of("prediction_type", PREDICTION_TYPES),
        final_alpha_cumprod=fields.number("final_alpha_cumprod", 0, 1),
        timestep_spacing=fields.one_of("timestep_spacing", SPACINGS),
        steps_offset=fields.count("steps_offset", least=0),
    )


def read_pixels(fields: Fields) -> Pixels:
    channels = fields.count("channels")
    if channels not in (1, 3):
        raise BundleError(
            f"{fields.where}: channels is {channels}; pictures are grey, with 1, or red-green-blue, with 3"
        )
    return Pixels(channels, fields.count("height", most=2**16), fields.count("width", most=2**16))


def read_latents(fields: Fields) -> Latents:
    preview = optional(fields, "preview", read_preview) if "preview" in fields.left else None
    latents = Latents(
        fields.count("channels"), fields.count("factor"), fields.number("scaling_factor", 1e-6, 1e6), preview
    )
    if preview and len(preview.weights) != latents.channels:
        raise BundleError(
            f"{fields.where}: preview has {len(preview.weights)} rows of weights for {latents.channels} channels"
        )
    return latents


def read_preview(fields: Fields) -> PreviewMap:
    weights = [read_colour(row, f"{fields.where}: weights") for row in fields.take("weights", list)]
    return PreviewMap(tuple(weights), read_colour(fields.take("biases", list), f"{fields.where}: biases"))


def read_colour(value: object, where: str) -> tuple[float, ...]:
    """A number each for red, green and blue."""
    if not isinstance(value, list) or len(value) != 3 or not all(map(is_finite_number, value)):
        raise BundleError(f"{where} must be three finite numbers, for red, green and blue")
    return tuple(map(float, value))


def read_unet_input(fields: Fields) -> tuple[str, int]:
    return fields.one_of("name", UNET_INPUTS), fields.count("channels", most=2**16)


def read_conditioning(fields: Fields) -> ClassConditioning | TextConditioning:
    kind = fields.take("kind", str)
    if kind not in CONDITIONINGS:
        known = ", ".join(CONDITIONINGS)
        raise BundleError(f"{fields.where}: kind {kind!r} is not known to this version, which knows: {known}")
    return CONDITIONINGS[kind](fields)


def read_class_conditioning(fields: Fields) -> ClassConditioning:
    conditioning = ClassConditioning(fields.count("num_classes"), fields.count("null_class"), fields.strings("names"))
    if conditioning.null_class != conditioning.num_classes:
        raise BundleError(f"{fields.where}: null_class is {conditioning.null_class}; it must be num_classes")
    if len(conditioning.names) != conditioning.num_classes or len(set(conditioning.names)) != conditioning.num_classes:
        raise BundleError(f"{fields.where}: names must be {conditioning.num_classes} different strings")
    return conditioning


def read_text_conditioning(fields: Fields) -> TextConditioning:
    vocab_size = fields.count("vocab_size", most=2**31)
    num_hidden_layers = fields.count("num_hidden_layers", most=2**16)
    known_words = fields.take("known_words", list, type(None))
    if known_words is not None and not (known_words and all(isinstance(word, str) for word in known_words)):
        raise BundleError(f"{fields.where}: known_words must be null or a list of strings")
    return TextConditioning(
        tokenizer=fields.child(fields.take("tokenizer", dict), "tokenizer", read_file),
        max_length=fields.count("max_length", least=2, most=2**16),
        bos_token_id=fields.count("bos_token_id", least=0, most=vocab_size - 1),
        eos_token_id=fields.count("eos_token_id", least=0, most=vocab_size - 1),
        pad_token_id=fields.count("pad_token_id", least=0, most=vocab_size - 1),
        vocab_size=vocab_size,
        embedding_dim=fields.count("embedding_dim", most=2**16),
        num_hidden_layers=num_hidden_layers,
        clip_skip=fields.count("clip_skip", least=0, most=num_hidden_layers),
        known_words=None if known_words is None else tuple(known_words),
    )


CONDITIONINGS: dict[str, Callable[[Fields], ClassConditioning | TextConditioning]] = {
    "class": read_class_conditioning,
    "text": read_text_conditioning,
}


def read_defaults(fields: Fields) -> Defaults:
    return Defaults(
        sampler=fields.take("sampler", str),
        num_inference_steps=fields.count("num_inference_steps"),
        guidance_scale=fields.number("guidance_scale"),
        width=fields.count("width"),
        height=fields.count("height"),
    )


def read_plans(fields: Fields) -> dict[str, Plan]:
    try:
        return {name: Plan.from_json(value) for name, value in fields.take("plans", dict).items()}
    except RequestError as error:
        raise BundleError(f"{fields.where}: plans: {error}") from error
