"""``conformance.safetensors``: questions and answers by which a host in any language proves itself
(``docs/bundle.md``).

What a network should say and what a picture should look like comes from PyTorch; words, noise and plans come from the
runtime's own specification, whose agreement with PyTorch and with the papers is a matter for the tests of this
repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save

from export.graphs import GraphSpec
from export.parity import Question
from runtime.noise import mersenne_words, noise_generator, philox_words
from runtime.plan import Plan

Array = npt.NDArray[Any]

INPUT_SEED = 1  # not that of parity: other numbers, other luck
# Parity was measured on one processor. Another one, or another engine, adds in another order; ten times as much is
# still rounding.
HOST_MARGIN = 10.0
NOISE_TOLERANCE = 2e-6
PLAN_TOLERANCE = 1e-12
PICTURE_TOLERANCE = 1e-3
PLAN_ARRAYS = ("signal_scales", "noise_scales", "timesteps", "guidance", "weights", "x0_weights")
# (generator, seed, draw, words): both halves of a 64-bit key and a counter; Mersenne's state turned over, and a seed
# cut to 32 bits.
BITS = (
    ("philox", 0, 0, 16),
    ("philox", 2**64 - 2, 3, 16),
    ("torch", 0, 0, 640),
    ("torch", 2**32 + 1, 0, 16),
)


def question(spec: GraphSpec) -> Question:
    """Inputs of the spec's example sizes, and PyTorch's answer."""
    inputs = spec.draw(spec.example_sizes, torch.Generator().manual_seed(INPUT_SEED))
    outputs = spec.reference(inputs)
    return ({name: x.numpy() for name, x in inputs.items()}, {name: x.numpy() for name, x in outputs.items()})


def to_uint8(image: torch.Tensor) -> Array:
    """Pixels uint8 (B, H, W, C) of an image in [-1, 1], (B, C, H, W). Halves are rounded to even."""
    levels = ((image.double() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


class Conformance:
    """The cases and tensors of one conformance file, as they are collected."""

    def __init__(self) -> None:
        self.cases: list[dict[str, Any]] = []
        self.tensors: dict[str, Array] = {}

    def add(self, kind: str, **fields: object) -> None:
        self.cases.append({"kind": kind, **fields})

    def store(self, name: str, array: Array) -> str:
        """Keep a tensor of the case that is about to be added, if it is not there; returns its name in the file."""
        for name, known in self.tensors.items():
            if known is array:  # the question of another variant of the same graph
                return name
        full = f"{len(self.cases)}.{name}"
        self.tensors[full] = np.ascontiguousarray(array)
        return full

    def add_graph(self, role: str, variant: str, example: Question, tolerance: float) -> None:
        """What PyTorch says of an example."""
        inputs, outputs = example
        self.add(
            "graph",
            graph=role,
            variant=variant,
            inputs={name: self.store(f"inputs.{name}", array) for name, array in inputs.items()},
            outputs={name: self.store(f"outputs.{name}", array) for name, array in outputs.items()},
            tolerance=tolerance,
        )

    def add_bits(self) -> None:
        """The first words of each generator; integers, to be met exactly."""
        for generator, seed, draw, count in BITS:
            words = philox_words(seed, draw, count) if generator == "philox" else mersenne_words(seed, count)
            self.add("bits", generator=generator, seed=str(seed), draw=draw, tensor=self.store("words", words))

    def add_noise(self, shape: tuple[int, ...]) -> None:
        """Draws of an image's shape, and of the sizes around 16 where the torch generator takes other ways."""
        for generator, seed, draw, size in (
            ("philox", 0, 0, shape),
            ("philox", 2**64 - 2, 2, shape),
            ("torch", 0, 0, shape),
            ("torch", 2**32 + 1, 2, shape),
            ("torch", 0, 1, (5,)),
            ("torch", 0, 1, (17,)),
        ):
            noise = noise_generator(generator, seed)
            draws = [noise.draw(size) for _ in range(draw + 1)]
            tensor = self.store("noise", draws[draw])
            self.add("noise", generator=generator, seed=str(seed), draw=draw, tensor=tensor, tolerance=NOISE_TOLERANCE)

    def add_plan(self, name: str, plan: Plan) -> None:
        """A plan's numbers, for hosts that compile plans themselves."""
        tensors = {key: self.store(key, getattr(plan, key)) for key in PLAN_ARRAYS}
        self.add("plan", plan=name, tensors=tensors, tolerance=PLAN_TOLERANCE)

    def add_tokens(self, prompt: str, ids: Array) -> None:
        """What a prompt becomes: int64 (max_length,)."""
        self.add("tokens", prompt=prompt, tensor=self.store("ids", ids))

    def add_picture(
        self,
        plan: str,
        guidance_scale: float,
        seed: int,
        sample: Array,
        image: Array,
        tolerance: float = PICTURE_TOLERANCE,
        **request: object,
    ) -> None:
        """A whole picture from ``philox`` noise.

        Args:
            plan: its name in the manifest.
            guidance_scale: of the whole picture.
            seed: of the first image.
            sample: the last x, float32 (B, C, H, W) or (B, C, h, w).
            image: uint8 (B, H, W, C).
            tolerance: of ``sample``.
            request: what was asked for: ``class_labels``, or ``prompt``, ``negative_prompt``, ``width`` and ``height``.
        """
        self.add(
            "picture",
            plan=plan,
            generator="philox",
            seed=str(seed),
            guidance_scale=guidance_scale,
            **request,
            sample=self.store("sample", sample),
            tolerance=tolerance,
            image=self.store("image", image),
        )

    def to_bytes(self) -> bytes:
        """The file. ``cases`` is its only metadata, since safetensors keeps several in no fixed order."""
        metadata: Mapping[str, str] = {"cases": json.dumps(self.cases, allow_nan=False)}
        return save(self.tensors, dict(metadata))
