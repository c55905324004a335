"""Published files: fetched once into the user's cache, and what is inside compared with what was published."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pooch

from training.arrays import UInt8
from training.checkpoint import one_line
from training.errors import DataError

DATA_VARIABLE = "DIFFUSION_ANYWHERE_DATA"


def fetch(url: str, name: str, md5: str, dataset: str) -> Path:
    """Fetch ``url``/``name`` into the cache's folder for a data set; pooch checks its MD5 and writes it aside first.

    Raises:
        DataError: it cannot be fetched, or is not what was published.
    """
    try:
        folder = pooch.os_cache("diffusion-anywhere") / dataset
        return Path(pooch.retrieve(f"{url}{name}", f"md5:{md5}", fname=name, path=folder))
    except (OSError, ValueError) as error:
        raise DataError(
            f"could not fetch {url}{name} ({one_line(error)}); give a folder that holds it with --data or "
            f"${DATA_VARIABLE}"
        ) from error


def none_found(folder: Path, names: str, title: str, megabytes: int) -> DataError:
    """The error for a folder without a data set."""
    return DataError(
        f"{folder} holds neither {names}; give another folder with --data, or none there and "
        f"none in ${DATA_VARIABLE} to fetch {title} ({megabytes} MB)"
    )


def check_published(array: UInt8, sha256: str, path: Path, key: str, title: str) -> None:
    """Compare an array with its published content.

    Raises:
        DataError: it is another.
    """
    if hashlib.sha256(array.tobytes()).hexdigest() != sha256:
        raise DataError(
            f"{path}: {key} is not the published {title} (its SHA-256 differs); delete the file and fetch it again"
        )
