"""Finished images, and the files they go to."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import RequestError
from runtime.image import FORMATS, UInt8, check_size, check_writable, encode_image, grid_size, make_grid, write_file
from runtime.limits import check_whole
from runtime.parameters import parameters


@dataclass(frozen=True)
class Result:
    """Finished images and what made them.

    Attributes:
        images: uint8 (B, H, W, C).
        sample: the last x, float32: pixels before rounding (B, C, H, W), or latents (B, C, h, w).
        seeds: one for each image.
        conditions: what else differs from image to image, such as its prompt or its class label.
        metadata: what else made them: the model, the sampler and its options, the engine. A plan that was given is
            known by its hash alone, and has to be kept.
    """

    images: UInt8
    sample: npt.NDArray[np.float32]
    seeds: tuple[int, ...]
    conditions: tuple[Mapping[str, Any], ...]
    metadata: dict[str, Any]

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> list[Path]:
        """Write one file, or for several images ``name-1.png``, ``name-2.png`` ...; each carries its own metadata.

        Raises:
            RequestError: unknown suffix, missing folder, or a file that exists.
        """
        paths = image_paths(path, len(self.images))
        check_writable(paths, overwrite)
        for k, each in enumerate(paths):
            write_file(each, self.encoded(k, each.suffix.lower()))
        return paths

    def encoded(self, k: int, suffix: str) -> bytes:
        """Image k as the bytes of a file, which carries its own metadata.

        Raises:
            RequestError: the format cannot hold the picture.
        """
        made = self.metadata_of(k)
        return encode_image(self.images[k], suffix, made, parameters(made))

    def metadata_of(self, k: int) -> dict[str, Any]:
        """What made image k."""
        return self.metadata | {"seed": self.seeds[k], **self.conditions[k]}

    def save_grid(self, path: str | os.PathLike[str], columns: int | None = None, overwrite: bool = False) -> Path:
        """Write all images on one sheet; without ``columns`` it is about as wide as high.

        The web interfaces read in it what made its first image, as in sheets of their own.

        Raises:
            RequestError: unknown suffix, missing folder, or a file that exists.
        """
        base = image_path(path)
        if columns is not None:
            check_whole("columns", columns, least=1)
        check_writable(base, overwrite)
        columns = columns or math.ceil(math.sqrt(len(self.images)))
        count, height, width, _ = self.images.shape
        check_size(base.suffix.lower(), *grid_size(count, width, height, columns))
        sheet = make_grid(self.images, columns)
        own = self.metadata | {"seeds": list(self.seeds), "conditions": [dict(each) for each in self.conditions]}
        write_file(base, encode_image(sheet, base.suffix.lower(), own, parameters(self.metadata_of(0))))
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
