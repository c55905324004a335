"""Tensors from one file, mapped into memory and not copied: reading costs nothing until a tensor is used."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from training.checkpoint import one_line
from training.errors import CheckpointError
from training.paths import exists
from training.stable_diffusion.checkpoint.ckpt_pickle import read_pickle

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        CheckpointError: not there, of an unknown kind, damaged, or a pickle with more than weights in it.
    """
    if not (exists(path) and path.is_file()):
        raise CheckpointError(f"{path} does not exist")
    if path.suffix not in ENDINGS:
        raise CheckpointError(f"{path} does not end like a checkpoint; these are read: {' '.join(ENDINGS)}")
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file by name.

    Raises:
        CheckpointError: not such a file, or damaged; nothing is believed about its sizes before they are checked.
    """
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut short or damaged ({one_line(error)}); download it again") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or one_line(error)})") from error


def check_header(path: Path) -> None:
    """Say in words what the library would call a header that is too large.

    Raises:
        CheckpointError: the file is text, or shorter than its first eight bytes say.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    if size < 8:
        raise CheckpointError(f"{path} is empty or cut short; download it again")
    if start.isascii() and start.decode().isprintable():
        raise CheckpointError(
            f"{path} is text and no safetensors file (it begins {start.decode()!r}): "
            "perhaps a pointer or an error page that was saved in its place"
        )
    length = int.from_bytes(start, "little")
    if length > size - 8:
        raise CheckpointError(
            f"{path} is no safetensors file, or cut short: its header should take {length:,} bytes, "
            f"but the file has {size:,}; download it again"
        )
