"""Opens ``.ckpt`` files, which are pickles, without running anything that is written in them.

PyTorch's weights-only loader rebuilds tensors and plain containers and refuses every other class. Many checkpoints
hold, beside the weights, objects of the framework that trained them. For a fixed list of such names the loader is given
stand-ins that swallow whatever the file has to say about them, so nothing is imported and nothing is called.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import one_line
from training.errors import CheckpointError


class InertObject:
    """Stands in for an object: takes any arguments and any state, and keeps none of them."""

    def __new__(cls, *_arguments: Any) -> InertObject:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class InertMapping:
    """Stands in for a subclass of dict. The loader fills nothing but plain mappings, so that is what this makes."""

    def __new__(cls, *_arguments: Any) -> Any:
        return OrderedDict()


# Who pickles them: Lightning keeps its callbacks' states under their classes, and their best scores as NumPy numbers;
# its hyperparameters are an AttributeDict or, where OmegaConf is installed, that library's containers.
OBJECTS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    *(
        f"{package}.callbacks.{callback}"
        for package in ("pytorch_lightning", "lightning.pytorch")
        for callback in (
            "early_stopping.EarlyStopping",
            "lr_monitor.LearningRateMonitor",
            "model_checkpoint.ModelCheckpoint",
        )
    ),
)
MAPPINGS = (
    "collections.defaultdict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
STAND_INS: list[Any] = [(InertObject, name) for name in OBJECTS] + [(InertMapping, name) for name in MAPPINGS]


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.ckpt``, ``.pt``, ``.pth`` or ``.bin`` by name, mapped from the file.

    Where the file holds a ``state_dict`` beside other things, its tensors are meant.

    Raises:
        CheckpointError: not a file that torch.save wrote, damaged, or a pickle that asks for anything but weights.
    """
    check_archive(path)
    try:
        with torch.serialization.safe_globals(STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(refusal(path, str(error))) from None
    except Exception as error:  # a pickle is a program for a stack machine: a broken one can fail in any way
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {one_line(error)})") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = content.items() if isinstance(content, dict) else ()
    return {name: tensor for name, tensor in tensors if isinstance(name, str) and isinstance(tensor, Tensor)}


def check_archive(path: Path) -> None:
    """Refuse what torch.save did not write; above all compressed entries, which may swell to any size when opened.

    Raises:
        CheckpointError: as said.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # a broken list of entries fails in as many ways as there are fields in it
        raise CheckpointError(
            f"{path} is no checkpoint that torch.save wrote, or is cut short; download it again, or use .safetensors"
        ) from error
    if compressed:
        raise CheckpointError(f"{path} has compressed entries, which torch.save never writes; it is refused")


def refusal(path: Path, message: str) -> str:
    """One line for what the loader says in ten."""
    named = re.search(r"GLOBAL (\S+)", message)
    reason = f"{named[1]}" if named else one_line(ValueError(message.split("WeightsUnpickler error: ")[-1]))
    return (
        f"{path} asks for more than weights ({reason}) and is refused, since a pickle can run code; "
        "look for a .safetensors version of it"
    )
