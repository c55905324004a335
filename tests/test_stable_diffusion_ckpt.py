"""Proves that ``.ckpt`` files are read with whatever training frameworks left in them, and no code in them runs."""

from __future__ import annotations

import pickle
import random
import sys
import types
import zipfile
from collections import defaultdict
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from checkpoint_files import original_layout
from random_weights import SMALLEST, random_state

from training.stable_diffusion.checkpoint import CheckpointError, load_checkpoint
from training.stable_diffusion.checkpoint.ckpt_pickle import InertObject
from training.stable_diffusion.checkpoint.tensor_files import read_tensors


@pytest.fixture(scope="module")
def tensors():
    return original_layout(SMALLEST, random_state(SMALLEST))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3, "global_step": 470_000}])
@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin"])
def test_weights_are_read(tmp_path, tensors, ending, wrap):
    torch.save(wrap(tensors), tmp_path / f"model{ending}")
    assert_same(read_tensors(tmp_path / f"model{ending}"), tensors)


def test_a_whole_model(tmp_path, tensors):
    torch.save({"state_dict": {name: tensor.half() for name, tensor in tensors.items()}}, tmp_path / "model.ckpt")
    model = load_checkpoint(tmp_path / "model.ckpt", config=SMALLEST)
    assert torch.equal(model.unet.conv_in.bias, tensors["model.diffusion_model.input_blocks.0.0.bias"].half().float())


@contextmanager
def class_of_a_framework(module: str, name: str, base: type = object):
    """A class as if some library had it, so that pickle writes that library's name; then it is gone again."""
    made = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    modules = {".".join(parts[: i + 1]): types.ModuleType(module) for i in range(len(parts))}
    setattr(modules[module], name, made)
    with mock.patch.dict(sys.modules, modules):
        yield made
    assert module not in sys.modules


FRAMEWORK_CLASSES = [
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", object),
    ("pytorch_lightning.callbacks.early_stopping", "EarlyStopping", object),
    ("lightning.pytorch.callbacks.lr_monitor", "LearningRateMonitor", object),
    ("omegaconf.dictconfig", "DictConfig", object),
    ("omegaconf.listconfig", "ListConfig", object),
    ("pytorch_lightning.utilities.parsing", "AttributeDict", dict),
    ("lightning_fabric.utilities.data", "AttributeDict", dict),
]


@pytest.mark.parametrize(("module", "name", "base"), FRAMEWORK_CLASSES)
def test_objects_of_training_frameworks_are_passed_over(tmp_path, tensors, module, name, base):
    with class_of_a_framework(module, name, base) as made:
        instance = made()
        instance.state = {"best_model_score": np.float64(0.5), "dirs": defaultdict(list, a=[1])}
        if base is dict:
            instance["learning_rate"] = 1e-4
        torch.save({"callbacks": {made: instance}, "state_dict": tensors, "made": [made]}, tmp_path / "model.ckpt")
    assert_same(read_tensors(tmp_path / "model.ckpt"), tensors)
    assert module not in sys.modules  # nothing was imported either


class Calls:
    """Pickled, it is a call of ``function``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def sets_a_flag(path):
    open(path, "w").close()


@pytest.mark.parametrize("function", ["os.system", "builtins.eval", "builtins.exec", "subprocess.Popen", "own"])
@pytest.mark.parametrize("place", ["beside", "inside", "instead"])
def test_code_is_not_run(tmp_path, tensors, function, place):
    flag = tmp_path / "flag"
    module, _, name = function.rpartition(".")
    code = f"touch {flag}" if name in ("system", "Popen") else f"open({str(flag)!r}, 'w').close()"
    called = Calls(sets_a_flag, str(flag)) if function == "own" else Calls(getattr(__import__(module), name), code)
    content = {
        "beside": {"callbacks": called, "state_dict": tensors},
        "inside": {"state_dict": tensors | {"model.diffusion_model.out.2.bias": called}},
        "instead": called,
    }[place]
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"asks for more than weights .* is refused") as raised:
        load_checkpoint(tmp_path / "model.ckpt", config=SMALLEST)
    assert not flag.exists()
    assert "\n" not in str(raised.value)


def test_stand_ins_cannot_be_reached_into(tmp_path, tensors):
    """A pickle may set attributes on what it makes; on a stand-in that does nothing."""
    with class_of_a_framework("omegaconf.dictconfig", "DictConfig") as made:
        first, second = made(), made()
        first.__dict__["__class__"] = second.__dict__["__setstate__"] = "changed"
        torch.save({"state_dict": tensors, "config": [first, second]}, tmp_path / "model.ckpt")
    assert_same(read_tensors(tmp_path / "model.ckpt"), tensors)
    assert vars(InertObject()) == {}


def test_stand_ins_are_for_this_file_only(tmp_path, tensors):
    before = set(torch.serialization.get_safe_globals())
    torch.save(tensors, tmp_path / "model.ckpt")
    read_tensors(tmp_path / "model.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_compressed_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="has compressed entries"):
        read_tensors(tmp_path / "bomb.ckpt")


@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", pickle.dumps({"state_dict": {}}), bytes(1000)],
    ids=["empty", "text", "bare pickle", "zeros"],
)
def test_what_torch_did_not_save_is_refused(tmp_path, content):
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="no checkpoint that torch\\.save wrote, or is cut short"):
        read_tensors(tmp_path / "model.ckpt")


def test_damage_anywhere_is_an_error_or_harmless(tmp_path):
    """Truncated files and files with flipped bytes: one clear line, or tensors, and never anything else."""
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {f"layer.{i}.weight": torch.ones(4, 4) for i in range(5)}}, path)
    whole = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for trial in range(300):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            del damaged[generator.randrange(len(whole)) :]
        else:
            for _ in range(3):
                damaged[generator.randrange(len(whole))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            message = ""
            found = read_tensors(path)
        except CheckpointError as error:
            message, found = str(error), {}
        assert "\n" not in message
        assert all(tensor.double().sum().numel() == 1 for tensor in found.values())  # their memory is there
        refused += bool(message)
    assert refused > 100


def test_other_things_than_tensors_are_missing(tmp_path):
    torch.save({"state_dict": {"a": 1, 2: torch.ones(1), "b": torch.ones(2)}}, tmp_path / "odd.ckpt")
    assert list(read_tensors(tmp_path / "odd.ckpt")) == ["b"]
    torch.save([torch.ones(1)], tmp_path / "list.ckpt")
    assert read_tensors(tmp_path / "list.ckpt") == {}
