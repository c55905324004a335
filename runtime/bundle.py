"""What a bundle is (``docs/bundle.md``): its parts as data, where it is found, and how its files are read.

A bundle may come from a stranger. Paths stay inside its folder, sizes are checked before anything is read, hashes
before anything is run, and every complaint is one line. The manifest itself is read by ``runtime.manifest``.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import BundleError
from runtime.plan import NoiseSchedule, Plan
from runtime.verified import compare_sha256

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL_INDEX = "model_index.json"  # of the folders that diffusers and optimum export
CONFORMANCE = "conformance.safetensors"
MODELS_VARIABLE = "DIFFUSION_ANYWHERE_MODELS"
DEFAULT_MODEL = "pocket"
# A manifest lists weights by name and plans by number; a full-size Stable Diffusion needs about one megabyte.
MAX_MANIFEST_BYTES = 64 * 2**20

PLAIN_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"  # of a bundle, or a file in it: no separator, and no dot at the start


@dataclass(frozen=True)
class File:
    """A file of the bundle: a plain name, its size in bytes, its SHA-256.

    The hash is None only for files of folders that others made, which say none (``runtime.foreign``).
    """

    name: str
    size: int
    sha256: str | None


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
class PreviewMap:
    """From latents to colours without a decoder: red, green and blue in [-1, 1] are weights · latents + biases.

    Attributes:
        weights: for each channel of latents three numbers.
        biases: three numbers.
    """

    weights: tuple[tuple[float, ...], ...]
    biases: tuple[float, ...]


@dataclass(frozen=True)
class Latents:
    """Shape and scale of the latents of a model that works on them; ``preview`` is None where the bundle has no map."""

    channels: int
    factor: int
    scaling_factor: float
    preview: PreviewMap | None = None


@dataclass(frozen=True)
class ClassConditioning:
    """Labels 0 .. num_classes - 1; ``null_class`` stands for none."""

    num_classes: int
    null_class: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class TextConditioning:
    """How a prompt becomes what the U-Net is told; ``docs/bundle.md`` says what each field is.

    Attributes:
        tokenizer: a file of the tokenizers library.
        max_length: ids of a prompt, with those of its begin and end.
        bos_token_id, eos_token_id, pad_token_id: begin, end, and what fills up.
        vocab_size: ids from here on choose rows of ``extra_embeddings``.
        embedding_dim: D, the width of ``encoder_hidden_states``.
        num_hidden_layers: layers of the text encoder, which is as many as can be skipped.
        clip_skip: last layers that are skipped unless a request says otherwise.
        known_words: all words that a model of a small world was trained with, or None.
    """

    tokenizer: File
    max_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    vocab_size: int
    embedding_dim: int
    num_hidden_layers: int
    clip_skip: int
    known_words: tuple[str, ...] | None


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
    conditioning: ClassConditioning | TextConditioning
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

    def files(self) -> Iterator[File]:
        """Every file but the manifest and the conformance file; a file that two graphs share comes once."""
        graphs = [graph for variants in self.graphs.values() for graph in variants.values()]
        files = [file for graph in graphs for file in (graph.file, *graph.external_data)]
        if isinstance(self.conditioning, TextConditioning):
            files.append(self.conditioning.tokenizer)
        return iter(dict.fromkeys(files))

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
        if file.sha256 is not None:
            compare_sha256(path, hashlib.sha256(data).hexdigest(), file.sha256)
        return data


def precision_of(variant: str) -> str:
    """Of PRECISION or PRECISION-ENGINE, the names that variants have."""
    return variant.partition("-")[0]


def checked_path(folder: Path, file: File) -> Path:
    path = folder / file.name
    size = plain_file_size(path)
    if size != file.size:
        raise BundleError(f"{path} has {size} bytes where the manifest says {file.size}; fetch it again")
    return path


def plain_file_size(path: Path) -> int:
    """Bytes of a file that is no link to another place.

    Raises:
        BundleError: not there, a symbolic link, not a plain file, or its folder is locked.
    """
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is not there; the bundle needs it as a plain file") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no file"
        raise BundleError(f"{path} is {kind}; the bundle needs it as a plain file")
    return status.st_size


def search_folders() -> list[Path]:
    """Where bundles are looked for by name: $DIFFUSION_ANYWHERE_MODELS, ./models_onnx, and the installed package."""
    named = os.environ.get(MODELS_VARIABLE)
    return [*([Path(named)] if named else []), Path("models_onnx"), Path(__file__).parent / "models"]


def known_names() -> list[str]:
    """The names under which bundles are found, in alphabetical order."""
    return sorted({found.parent.name for folder in search_folders() for found in folder.glob(f"*/{MANIFEST}")})


def find_bundle(model: str | os.PathLike[str]) -> Path:
    """The folder of a bundle given by path or by name.

    Raises:
        BundleError: nowhere to be found; the message says where it was looked for and which names there are.
    """
    path = Path(model)
    candidates = [path, *(folder / path for folder in search_folders() if not path.is_absolute())]
    try:
        for candidate in candidates:
            if (candidate / MANIFEST).is_file() or (candidate / MODEL_INDEX).is_file():
                return candidate
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise BundleError(f"{path} cannot be looked into ({error.strerror}); give a bundle's folder or name") from error
    if is_folder:
        raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST}")
    known = known_names()
    hint = f"known here: {', '.join(known)}" if known else "make one with: python -m export"
    raise BundleError(f"there is no bundle {str(model)!r}; {hint}")


def open_bundle(model: str | os.PathLike[str]) -> Bundle:
    """Read and check a bundle's manifest, and that its files are there with the right sizes.

    A folder that diffusers or optimum exported has a ``model_index.json`` instead and is read by ``runtime.foreign``.

    Args:
        model: a folder, or the name of a bundle that ``find_bundle`` finds.

    Raises:
        BundleError: with one line that says what is wrong.
    """
    from runtime.foreign import open_folder  # they are made of the classes above
    from runtime.manifest import read_manifest

    folder = find_bundle(model)
    path = folder / MANIFEST
    if not path.is_file():
        return open_folder(folder)
    size = plain_file_size(path)
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has {size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({' '.join(str(error).split())})") from error
    bundle = read_manifest(value, folder, hashlib.sha256(text).hexdigest())
    for file in bundle.files():
        bundle.path(file)
    return bundle
