"""The strict reader of bundles: ``docs/bundle.md`` in code. What it does not know, it refuses.

A bundle may come from a stranger. Paths stay inside its folder, sizes are checked before anything is read, hashes
before anything is run, and every complaint is one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtime.errors import BundleError, RequestError
from runtime.fields import Fields, T
from runtime.plan import PREDICTION_TYPES, SPACINGS, NoiseSchedule, Plan

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CONFORMANCE = "conformance.safetensors"
MODELS_VARIABLE = "DIFFUSION_ANYWHERE_MODELS"
DEFAULT_MODEL = "mnist-paper"
FAMILIES = ("class-conditional-ddpm", "stable-diffusion-1")
DTYPES = ("float32", "float16", "int64", "int32")
# A manifest lists weights by name and plans by number; a full-size Stable Diffusion needs about one megabyte.
MAX_MANIFEST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class File:
    """A file of the bundle: a plain name, its size in bytes, its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output; a dimension is a number or a symbol."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Initializer:
    """Where a weight of the state dict lies in the graph."""

    name: str
    transposed: bool


@dataclass(frozen=True)
class GraphVariant:
    """One ONNX file for one role, such as the fp32 U-Net."""

    file: File
    external_data: tuple[File, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    providers: tuple[str, ...]
    opset: int
    parity: Mapping[str, Any]
    initializers: Mapping[str, Initializer]


@dataclass(frozen=True)
class Pixels:
    """Shape of the images of a model that works on pixels."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Latents:
    """Shape and scale of the latents of a model that works on them."""

    channels: int
    factor: int
    scaling_factor: float


@dataclass(frozen=True)
class ClassConditioning:
    """Labels 0 .. num_classes - 1; ``null_class`` stands for none."""

    num_classes: int
    null_class: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Defaults:
    """What is used where the caller does not say."""

    sampler: str
    num_inference_steps: int
    guidance_scale: float
    width: int
    height: int


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. Files are verified when they are read, not before."""

    folder: Path
    name: str
    family: str
    provenance: Mapping[str, Any]
    graphs: Mapping[str, Mapping[str, GraphVariant]]
    noise_schedule: NoiseSchedule
    pixels: Pixels | None
    latents: Latents | None
    unet_input: tuple[tuple[str, int], ...]
    conditioning: ClassConditioning
    defaults: Defaults
    plans: Mapping[str, Plan]
    sha256: str

    def graph(self, role: str, variant: str = "fp32") -> GraphVariant:
        """The graph for a role.

        Raises:
            BundleError: the bundle has no such graph.
        """
        if variant not in self.graphs.get(role, {}):
            present = [f"{r}/{v}" for r, variants in self.graphs.items() for v in variants]
            raise BundleError(f"{self.folder} has no graph {role}/{variant}; it has {', '.join(present)}")
        return self.graphs[role][variant]

    def path(self, file: File) -> Path:
        """Where a file lies, after its size and its staying inside the folder have been checked.

        Raises:
            BundleError: not there, a symbolic link, not a plain file, or of another size.
        """
        return checked_path(self.folder, file)

    def read(self, file: File) -> bytes:
        """A file's bytes, after its hash has been checked.

        Raises:
            BundleError: as ``path``, or the hash differs.
        """
        path = self.path(file)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise BundleError(
                f"{path} does not have the SHA-256 of the manifest; it was altered or damaged: fetch it again"
            )
        return data


def checked_path(folder: Path, file: File) -> Path:
    path = folder / file.name
    if path.is_symlink() or not path.is_file():
        reason = "a symbolic link" if path.is_symlink() else "not there"
        raise BundleError(f"{path} is {reason}; the bundle needs it as a plain file")
    size = path.stat().st_size
    if size != file.size:
        raise BundleError(f"{path} has {size} bytes where the manifest says {file.size}; fetch it again")
    return path


# --- finding
# --------------------------------------------------------------------------------------------------------------


def search_folders() -> list[Path]:
    """Where bundles are looked for by name: $DIFFUSION_ANYWHERE_MODELS, ./models_onnx, and the installed package."""
    named = os.environ.get(MODELS_VARIABLE)
    return [*([Path(named)] if named else []), Path("models_onnx"), Path(__file__).parent / "models"]


def find_bundle(model: str | os.PathLike[str]) -> Path:
    """The folder of a bundle given by path or by name.

    Raises:
        BundleError: nowhere to be found; the message says where it was looked for and which names there are.
    """
    path = Path(model)
    candidates = [path, *(folder / path for folder in search_folders() if not path.is_absolute())]
    for candidate in candidates:
        if (candidate / MANIFEST).is_file():
            return candidate
    if path.is_dir():
        raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST}")
    known = sorted({found.parent.name for folder in search_folders() for found in folder.glob(f"*/{MANIFEST}")})
    hint = f"known here: {', '.join(known)}" if known else "make one with: python -m export"
    raise BundleError(f"there is no bundle {str(model)!r}; {hint}")


# --- reading
# ----------------------------------------------------------------------------------------------------------------


def open_bundle(model: str | os.PathLike[str]) -> Bundle:
    """Read and check a bundle's manifest, and that its files are there with the right sizes.

    Args:
        model: a folder, or the name of a bundle that ``find_bundle`` finds.

    Raises:
        BundleError: with one line that says what is wrong.
    """
    folder = find_bundle(model)
    path = folder / MANIFEST
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has {path.stat().st_size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}")
    try:
        text = path.read_bytes()
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({' '.join(str(error).split())})") from error
    bundle = read_manifest(value, folder, hashlib.sha256(text).hexdigest())
    for variants in bundle.graphs.values():
        for graph in variants.values():
            for file in (graph.file, *graph.external_data):
                bundle.path(file)
    return bundle


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
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise BundleError(f"{fields.where}: name {name!r} may hold letters, digits, '.', '_' and '-' only")
    bundle = Bundle(
        folder=folder,
        name=name,
        family=fields.one_of("family", FAMILIES),
        provenance=fields.child(fields.take("provenance", dict), "provenance", read_provenance),
        graphs=read_graphs(fields),
        noise_schedule=fields.child(fields.take("noise_schedule", dict), "noise_schedule", read_noise_schedule),
        pixels=optional(fields, "pixels", read_pixels),
        latents=optional(fields, "latents", read_latents),
        unet_input=tuple(fields.objects("unet_input", lambda part: (part.take("name", str), part.count("channels")))),
        conditioning=fields.child(fields.take("conditioning", dict), "conditioning", read_conditioning),
        defaults=fields.child(fields.take("defaults", dict), "defaults", read_defaults),
        plans=read_plans(fields),
        sha256=sha256,
    )
    fields.finish()
    if (bundle.pixels is None) == (bundle.latents is None):
        raise BundleError(f"{fields.where}: exactly one of pixels and latents must be null")
    check_unet(bundle, fields.where)
    return bundle


def check_unet(bundle: Bundle, where: str) -> None:
    """Hold the U-Net's declared inputs and outputs against the contract and against the rest of the manifest.

    Raises:
        BundleError: another name, dtype or rank, or an image shape that is not the manifest's.
    """
    channels = sum(count for _, count in bundle.unet_input)
    size = (bundle.pixels.height, bundle.pixels.width) if bundle.pixels else (None, None)
    if bundle.pixels and channels != bundle.pixels.channels:
        raise BundleError(f"{where}: unet_input has {channels} channels where pixels has {bundle.pixels.channels}")
    for variant, graph in bundle.graphs.get("unet", {}).items():
        shapes = {spec.name: (spec.dtype, spec.shape) for spec in (*graph.inputs, *graph.outputs)}
        expected = {
            "sample": ("float32", 4),
            "timestep": ("float32", 1),
            "class_labels": ("int64", 1),
            "out_sample": ("float32", 4),
        }
        if {name: (dtype, len(shape)) for name, (dtype, shape) in shapes.items()} != expected:
            raise BundleError(f"{where}: graphs: unet.{variant} must have {expected} as dtypes and ranks, not {shapes}")
        _, *declared = shapes["sample"][1]
        if any(
            isinstance(mine, int) and mine != theirs for mine, theirs in zip(declared, (channels, *size), strict=True)
        ):
            raise BundleError(
                f"{where}: graphs: unet.{variant} takes samples of {declared}, not of {[channels, *size]}"
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
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
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
    return Pixels(
        fields.count("channels", most=4), fields.count("height", most=2**16), fields.count("width", most=2**16)
    )


def read_latents(fields: Fields) -> Latents:
    return Latents(fields.count("channels"), fields.count("factor"), fields.number("scaling_factor", 1e-6, 1e6))


def read_conditioning(fields: Fields) -> ClassConditioning:
    kind: Literal["class"] | str = fields.take("kind", str)
    if kind != "class":
        raise BundleError(f"{fields.where}: kind {kind!r} is not known to this version, which knows: class")
    conditioning = ClassConditioning(fields.count("num_classes"), fields.count("null_class"), fields.strings("names"))
    if conditioning.null_class != conditioning.num_classes:
        raise BundleError(f"{fields.where}: null_class is {conditioning.null_class}; it must be num_classes")
    if len(conditioning.names) != conditioning.num_classes or len(set(conditioning.names)) != conditioning.num_classes:
        raise BundleError(f"{fields.where}: names must be {conditioning.num_classes} different strings")
    return conditioning


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
