"""``python -m runtime replay``: draw a picture again from what it carries, and say whether it is the same.

A picture may come from anybody. It names a model, which is looked for among the bundles of this machine by its plain
name, and never a path: a picture to begin at, a plan, learned words or another bundle are given by whoever asks.
Nothing is fetched.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runtime import variation_arguments
from runtime.bundle import MANIFEST, PLAIN_NAME, search_folders
from runtime.embeddings import add_embedding_arguments, embedding_settings
from runtime.engine import PROVIDERS
from runtime.errors import BundleError, RequestError, one_line
from runtime.fields import Fields
from runtime.image import FORMATS, UInt8, carried_by, check_writable, encode_image
from runtime.loading import load
from runtime.model_plan import plan_sha256
from runtime.pipeline import Pipeline
from runtime.plan_arguments import SAMPLER_OPTIONS, read_plan
from runtime.prompt_syntax import shortened
from runtime.result import Result, image_path
from runtime.source_image import opened, reading
from runtime.text_to_image import MAX_SIDE, TextToImage
from runtime.vae import LEAST_TILE, quarters

SAME_DB = 50.0  # from here on two pictures differ by rounding alone
MAX_METADATA = 2**20  # characters
OF_TEXT = ("prompt", "negative_prompt", "width", "height", "clip_skip")
OF_MASK: dict[str, tuple[type, ...]] = {"paste_back": (bool,), "extend": (dict,)}
OF_ANY_PLAN = {*OF_TEXT, *OF_MASK, "guidance_scale", "seed", "rng", "variation_seed", "variation_strength"}
# What a picture says of the machine that drew it, which may be another one.
OF_MACHINE = ("provider", "onnxruntime")


@dataclass(frozen=True)
class Carried:
    """A picture and what it carries.

    Attributes:
        pixels: uint8 (H, W, C).
        kind: Pillow's name of the file's format.
        bundle, bundle_sha256: the model's name, and its manifest's hash.
        low_memory: whether large pictures were decoded in tiles.
        tile: latents of a tile, where another size was chosen for it.
        condition: prompts or label.
        settings: arguments of a pipeline's call.
        embeddings: the learned words in the prompts, as ``TextToImage.learned`` has them.
        plan_sha256, image_sha256, mask_sha256: of a plan, a picture to begin at and a mask that were given, or None;
            the last also of one that an extended picture has of itself.
    """

    pixels: UInt8
    kind: str
    bundle: str
    bundle_sha256: str | None
    low_memory: bool
    condition: Any
    settings: Mapping[str, Any]
    embeddings: Sequence[Mapping[str, Any]]
    plan_sha256: str | None
    image_sha256: str | None
    mask_sha256: str | None
    tile: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=replay)
    parser.add_argument("picture", type=Path, help="a picture that this program drew")
    parser.add_argument("--model", help="a bundle's folder or name, instead of the name that the picture carries")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the picture it began at, if it began at one")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="the mask it was drawn with, if it was given one")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="the plan it was drawn by, if it was given one")
    add_embedding_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, help="keep the new picture")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    parser.add_argument(
        "--provider", choices=("auto", *PROVIDERS), default="auto", help="where to compute (default: %(default)s)"
    )


def replay(arguments: argparse.Namespace) -> int:
    """Draw again and compare; the exit status is 0 if the pictures are the same but for rounding, and else 1."""
    carried = read_carried(arguments.picture)
    if arguments.output is not None:
        check_writable(image_path(arguments.output), arguments.overwrite)
    model = carried_bundle(carried.bundle) if arguments.model is None else arguments.model
    learned = embedding_settings(arguments)
    pipeline = load(model, arguments.provider, low_memory=carried.low_memory, embeddings=learned)
    if carried.tile is not None and isinstance(pipeline, TextToImage):
        pipeline.tiles = quarters(carried.tile)
    if arguments.model is None and pipeline.bundle.sha256 != carried.bundle_sha256:
        raise RequestError(
            f"{arguments.picture} was drawn by another {carried.bundle} than the one here (its manifest has another "
            "SHA-256); name a bundle with --model"
        )
    result = draw_again(pipeline, carried, arguments)
    if arguments.output is not None:
        result.save(arguments.output, arguments.overwrite)
    same, verdict = compare(carried.pixels, as_kept(result.images[0], carried.kind))
    print(f"{arguments.picture}: {verdict}")
    return 0 if same else 1


def carried_bundle(name: str) -> Path:
    """The folder of the bundle that a picture names, where bundles are kept and nowhere else.

    Raises:
        RequestError: there is none.
    """
    for folder in search_folders():
        if (folder / name / MANIFEST).is_file():
            return folder / name
    raise RequestError(f"the picture was drawn by {name}, of which there is no bundle here; name one with --model")


def draw_again(pipeline: Pipeline, carried: Carried, arguments: argparse.Namespace) -> Result:
    """The picture once more.

    Raises:
        RequestError: a plan, a picture to begin at or a learned word is missing, or another.
    """
    settings = dict(carried.settings)
    check_embeddings(pipeline, carried, arguments.picture)
    if carried.plan_sha256 is not None:
        plan = read_plan(needed(arguments.plan, "was drawn by a plan that was given; give it with --plan"))
        if plan_sha256(plan) != carried.plan_sha256:
            raise RequestError(f"{arguments.plan} is not the plan that {arguments.picture} was drawn by")
        settings = {name: settings[name] for name in settings.keys() & OF_ANY_PLAN}
        settings["plan"] = plan
    if carried.image_sha256 is not None:
        settings["image"] = needed(arguments.image, "began at a picture; give it with --image")
    if carried.mask_sha256 is not None:
        settings["mask"] = arguments.mask
        if "extend" not in settings:  # which makes a mask of its own, where none was given
            needed(arguments.mask, "was drawn with a mask; give it with --mask")
    request = pipeline.request(carried.condition, **settings)
    made = request[0].metadata
    if made.get("image_sha256") != carried.image_sha256:
        raise RequestError(f"{arguments.image} is not the picture that {arguments.picture} began at")
    if made.get("mask_sha256") != carried.mask_sha256:
        given = "no mask" if arguments.mask is None else arguments.mask
        raise RequestError(f"{given} is not the mask that {arguments.picture} was drawn with; give that with --mask")
    return pipeline.draw(*request)


def check_embeddings(pipeline: Pipeline, carried: Carried, picture: Path) -> None:
    """Refuse to draw with other learned words than the picture's, or without them.

    Raises:
        RequestError: with both, by name and the begin of their files' SHA-256.
    """
    here: Sequence[Mapping[str, Any]] = ()
    if isinstance(pipeline, TextToImage) and isinstance(carried.condition, str):
        here = pipeline.learned([carried.condition, carried.settings["negative_prompt"]]).get("embeddings", ())
    if [each["sha256"] for each in here] != [each["sha256"] for each in carried.embeddings]:
        raise RequestError(
            f"{picture} was drawn with {told(carried.embeddings)}, and now it would be with {told(here)}; "
            "give the same files with --embedding"
        )


def told(embeddings: Sequence[Mapping[str, Any]]) -> str:
    words = (f"{shortened(each['name'])} ({shortened(each['sha256'])[:12]})" for each in embeddings)
    return shortened(", ".join(words)) or "no learned word"


def needed(path: Path | None, why: str) -> Path:
    if path is None:
        raise RequestError(f"the picture {why}")
    return path


def read_carried(path: Path) -> Carried:
    """Read a picture and what it carries; sizes are looked at before anything is decoded.

    Raises:
        RequestError: no picture, one that is too large, one that carries nothing of this program's, a sheet, or frames.
    """
    if path.suffix.lower() == ".gif":
        raise RequestError(f"{path} is a moving picture; its frames are drawn again by their command")
    with opened(path, tuple(dict.fromkeys(FORMATS.values()))) as picture, reading(str(path)):
        picture.load()
        text, kind = carried_by(picture), str(picture.format)
        pixels = np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
    if text is None:
        raise RequestError(f"{path} does not say what made it; only pictures of this program do, as it wrote them")
    try:
        if len(text) > MAX_METADATA:
            raise BundleError(f"{path} carries {len(text)} characters; at most {MAX_METADATA}")
        return understood(pixels if pixels.ndim == 3 else pixels[..., None], kind, json.loads(text), str(path))
    except (ValueError, RecursionError, BundleError) as error:
        raise RequestError(f"{path} carries nothing that can be drawn again ({one_line(error)})") from error


def understood(pixels: UInt8, kind: str, value: object, where: str) -> Carried:
    """What ``Result.metadata_of`` wrote.

    Raises:
        BundleError: something is missing, mistyped or left over.
    """
    fields = Fields(value, where)
    if fields.left.keys() & {"seeds", "pictures"}:
        raise BundleError("it is a sheet; draw its pictures one by one")
    if fields.left.keys() & {"share", "frames"}:
        raise BundleError("it is a frame between two pictures; draw the frames again")
    bundle, sha256 = fields.take("bundle", str), fields.take("bundle_sha256", str, type(None))
    if not re.fullmatch(PLAIN_NAME, bundle):
        raise BundleError(f"{where}: bundle is {bundle!r}, which is no name of a bundle")
    low_memory = fields.take("low_memory", bool)
    fields.take("variant", str, type(None))  # of the weights, which the bundle's hash covers
    for name in OF_MACHINE:
        fields.take(name, str)
    if "version" in fields.left:  # older pictures do not say it
        fields.take("version", str)
    given = {name: fields.left.pop(name, None) for name in ("plan_sha256", "image_sha256", "mask_sha256")}
    settings = {
        "sampler": fields.take("sampler", str),
        "num_inference_steps": fields.count("num_inference_steps"),
        **plan_options(fields),
        "guidance_scale": fields.number("guidance_scale"),
        "rng": fields.take("rng", str),
        "seed": fields.count("seed", least=0, most=2**64 - 1),
        **{name: fields.take(name, *kinds) for name, kinds in variation_arguments.KINDS.items() if name in fields.left},
    }
    settings |= {name: fields.take(name, *kinds) for name, kinds in OF_MASK.items() if name in fields.left}
    embeddings = fields.objects("embeddings", embedding) if "embeddings" in fields.left else []
    if "class_label" in fields.left:
        condition, tile = fields.count("class_label", least=0), None
    else:
        text = {name: fields.take(name, str) for name in OF_TEXT[:2]}
        condition = text["prompt"]
        settings |= {"negative_prompt": text["negative_prompt"]}
        settings |= {name: fields.count(name, least=0) for name in OF_TEXT[2:]}
        tile = fields.count("vae_tile", least=LEAST_TILE, most=MAX_SIDE) if "vae_tile" in fields.left else None
    fields.finish()
    return Carried(pixels, kind, bundle, sha256, low_memory, condition, settings, embeddings, **given, tile=tile)


def embedding(fields: Fields) -> dict[str, Any]:
    """What a picture says of a learned word."""
    name, sha256 = fields.take("name", str), fields.take("sha256", str)
    return {"name": name, "sha256": sha256, "vectors": fields.count("vectors")}


def plan_options(fields: Fields) -> dict[str, Any]:
    """Options of the sampler, and no other argument of a call: none of them names a file.

    Raises:
        BundleError: there are others.
    """
    options: dict[str, Any] = fields.take("options", dict)
    if options.keys() - SAMPLER_OPTIONS:
        raise BundleError(f"{fields.where}: no sampler has an option {min(options.keys() - SAMPLER_OPTIONS)!r}")
    return options


def as_kept(image: UInt8, kind: str) -> UInt8:
    """A new picture, uint8 (H, W, C), as a file of a format gives it back: WebP and JPEG lose some of it."""
    suffix = next(each for each, name in FORMATS.items() if name == kind)
    with Image.open(io.BytesIO(encode_image(image, suffix))) as picture:
        pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def compare(before: UInt8, after: UInt8) -> tuple[bool, str]:
    """Whether two pictures, uint8 (H, W, C), are the same but for rounding, and in words."""
    if before.shape != after.shape:
        return False, f"another size: {before.shape[1]}x{before.shape[0]}, and now {after.shape[1]}x{after.shape[0]}"
    difference = np.abs(before.astype(np.int16) - after)
    if not difference.any():
        return True, "the same, bit for bit"
    psnr = 10 * math.log10(255**2 / np.square(difference.astype(np.float64)).mean())
    share = 100 * (difference > 0).any(axis=2).mean()
    words = f"{share:.2g} % of the pixels differ, by at most {difference.max()} of 255 ({psnr:.1f} dB)"
    return psnr >= SAME_DB, f"{'the same but for rounding' if psnr >= SAME_DB else 'another picture'}: {words}"
