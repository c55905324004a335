"""Proves at full size that a LoRA for every layer of Stable Diffusion 1.5, as the kohya scripts write it, is matched
whole, adds what the formula says, and takes the memory of the weights that it changes and, on the way, no more than
five times that of its largest layer in float64."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import full_size
import pytest
import torch
from lora_files import assert_equal_weights, layers, random_lora, write_lora

from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.lora import LoraFile, apply_loras

pytestmark = pytest.mark.full

SCALE = 0.8
# Every 25th layer, and the largest: 1280 x 2560 x 3 x 3.
SAMPLED = 25
LARGEST = "unet.up_blocks.1.resnets.0.conv1"


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """The file, in half precision as most are, and what is in it."""
    changes = random_lora(layers(load_checkpoint(full_size.single_file())), rank=4)
    for name, change in changes.items():
        changes[name] = type(change)(change.down.half(), change.up.half(), change.alpha)
    return write_lora(tmp_path_factory.mktemp("lora") / "lora.safetensors", changes), changes


def test_every_layer_is_matched_and_a_sample_equals_the_formula(lora):
    path, changes = lora
    model = load_checkpoint(full_size.single_file())
    before = layers(model)
    assert len(before) == len(changes) == 354
    apply_loras(model, [LoraFile(path, SCALE)])
    after = layers(model)
    assert all(after[name].data_ptr() != weight.data_ptr() for name, weight in before.items())
    for name in {*list(changes)[::SAMPLED], LARGEST}:
        expected = before[name].double() + SCALE * changes[name].difference
        assert_equal_weights(after, {name: expected}, 2**-24)


MEMORY = """
import ctypes, json, sys, threading, time
from pathlib import Path

def anonymous_bytes():
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.lora import LoraFile, apply_loras

model = load_checkpoint(sys.argv[1])
before = peak = anonymous_bytes()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous_bytes())

watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
apply_loras(model, [LoraFile(Path(sys.argv[2]), 0.8)])
seconds = time.perf_counter() - start
done.set()
watcher.join()
getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # what was freed goes back to the system, where the C library can
print(json.dumps({"peak": peak - before, "after": anonymous_bytes() - before, "seconds": seconds}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells mapped from other memory")
def test_memory_is_that_of_the_changed_weights_and_of_a_few_layers_in_float64(lora):
    command = [sys.executable, "-c", MEMORY, str(full_size.single_file()), str(lora[0])]
    root = Path(__file__).parents[1]
    measured = json.loads(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)
    model = load_checkpoint(full_size.single_file())
    changed = sum(weight.nbytes for weight in layers(model).values())
    largest = layers(model)[LARGEST].numel() * torch.float64.itemsize
    assert measured["peak"] < changed + 5 * largest
    assert measured["after"] < changed + largest
