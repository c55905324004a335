"""Standard normal noise: the same numbers for the same seed, on every machine and in every language.

Every image has a generator of its own and takes its draws in order. Both kinds of generator are specified in
``docs/bundle.md``::

    philox   counter-based: each number depends on (seed, draw, index) and on nothing else
    torch    sequential: the numbers of ``torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))``

Both turn two uniform numbers u and v into normal ones, √(-2 ln u) cos(2πv) and √(-2 ln u) sin(2πv) (Box and Muller
1958, "A note on the generation of random normal deviates").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from runtime.errors import RequestError
from runtime.limits import check_choice

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]

LOW_32: Final = 2**32 - 1
BLOCK: Final = 16  # PyTorch makes normal numbers in blocks of so many


class NoiseGenerator(Protocol):
    """The noise of one image."""

    def draw(self, shape: tuple[int, ...]) -> Float32:
        """The next draw: standard normal numbers, counted in C order over ``shape``."""


def noise_generator(name: str, seed: int) -> NoiseGenerator:
    """A generator before its draw 0. ``name`` is a key of ``GENERATORS``, ``seed`` within 0 .. 2**64 - 1.

    Raises:
        RequestError: the name is unknown or the seed out of range.
    """
    check_choice("noise generator", name, GENERATORS)
    return GENERATORS[name](seed)


def draw_each(generators: Sequence[NoiseGenerator], shape: tuple[int, ...]) -> Float32:
    """The next draw of each image's noise, float32 (B, C, H, W)."""
    return np.stack([generator.draw(shape) for generator in generators])


def image_seed(seed: int, k: int, name: str = "seed") -> int:
    """The seed of image ``k`` of a request: (seed + k) mod 2**64.

    Raises:
        RequestError: the argument, which is called ``name``, is out of range.
    """
    return (_unsigned(name, seed, bits=64) + k) % 2**64


def philox4x32(counter: UInt32, key: tuple[int, int]) -> UInt32:
    """Philox 4x32-10: n counters (4, n) and one key of two 32-bit words give the random words (4, n).

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    c0, c1, c2, c3 = counter.astype(np.uint64)  # wide enough for the product of two words
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & LOW_32, (p0 >> 32) ^ c3 ^ k1, p0 & LOW_32
        k0, k1 = (k0 + 0x9E3779B9) & LOW_32, (k1 + 0xBB67AE85) & LOW_32
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def philox_words(seed: int, draw: int, count: int) -> UInt32:
    """The words g0 and g1 of elements 0 .. count - 1 of one draw, (count, 2).

    Raises:
        RequestError: the seed is not within 0 .. 2**64 - 1, or the draw not within 0 .. 2**32 - 1.
    """
    key = _unsigned("seed", seed, bits=64)
    counter = np.zeros((4, count), np.uint32)
    counter[0] = _unsigned("draw", draw, bits=32)
    counter[2] = np.arange(count)
    return np.ascontiguousarray(philox4x32(counter, (key & LOW_32, key >> 32))[:2].T)


class PhiloxGenerator:
    """Noise from Philox 4x32-10: all it remembers is the number of the next draw."""

    def __init__(self, seed: int) -> None:
        self._seed = _unsigned("seed", seed, bits=64)
        self._next_draw = 0

    def draw(self, shape: tuple[int, ...]) -> Float32:
        """The next draw. Of the two normal numbers that u and v allow, only the sine is used."""
        words = philox_words(self._seed, self._next_draw, math.prod(shape))
        self._next_draw += 1
        u, v = words.T * 2.0**-32 + 2.0**-33  # float64, never 0 or 1
        normals: Float64 = np.sqrt(-2 * np.log(u)) * np.sin(2 * np.pi * v)
        return normals.astype(np.float32).reshape(shape)


class MersenneTwister:
    """MT19937, seeded as PyTorch does: by the low 32 bits alone.

    Matsumoto and Nishimura 1998, "Mersenne Twister: a 623-dimensionally equidistributed uniform pseudo-random number
    generator"; the seeding is that of their revision of 2002, which NumPy keeps for ever in ``RandomState``.
    """

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(_unsigned("seed", seed, bits=64) & LOW_32)

    def words(self, count: int) -> UInt32:
        """The next outputs, (count,)."""
        return self._state.randint(0, 2**32, size=count, dtype=np.uint32)


def mersenne_words(seed: int, count: int) -> UInt32:
    """The first outputs of the Mersenne Twister, (count,). A seed out of range is a RequestError."""
    return MersenneTwister(seed).words(count)


class TorchGenerator:
    """The noise of PyTorch's CPU generator: draw i is the i-th call of ``torch.randn``.

    The uniform numbers are exact. The normal ones lie within 1e-6 of a PyTorch that uses AVX2, whose rounding of the
    angle is followed, and within 4e-6 of one that does not: its two code paths differ by up to 2.8e-6 themselves.
    """

    def __init__(self, seed: int) -> None:
        self._twister = MersenneTwister(seed)
        self._spare: float | None = None  # survives the draw that made it, and any blocks drawn in between

    def draw(self, shape: tuple[int, ...]) -> Float32:
        """The next draw; below 16 numbers PyTorch makes them one by one, in another way."""
        size = math.prod(shape)
        normals = self._blocks(size) if size >= BLOCK else [self._single() for _ in range(size)]
        return np.array(normals, np.float32).reshape(shape)

    def _blocks(self, size: int) -> Float64:
        """Whole blocks from the start; if numbers are left over, the last block ends with them and is drawn anew."""
        uniforms = self._uniforms(size)
        whole = size - size % BLOCK
        normals = np.empty(size)
        normals[:whole] = _box_muller(uniforms[:whole])
        if whole < size:
            normals[-BLOCK:] = _box_muller(self._uniforms(BLOCK))
        return normals

    def _uniforms(self, count: int) -> Float64:
        return self._twister.words(count) % 2**24 / 2**24

    def _single(self) -> float:
        """The cosine of a pair, and the next time its sine."""
        if self._spare is not None:
            normal, self._spare = self._spare, None
            return normal
        v, u = self._uniform_53(), self._uniform_53()
        radius, angle = math.sqrt(-2 * math.log1p(-u)), 2 * math.pi * v
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform_53(self) -> float:
        high, low = self._twister.words(2).tolist()
        return float((high << 32 | low) % 2**53 / 2**53)


def _box_muller(uniforms: Float64) -> Float64:
    """Normal numbers from whole blocks: number j < 8 of a block is paired with j + 8; cosines first, then sines."""
    u, v = uniforms.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    radius = np.sqrt(-2 * np.log(1 - u))  # u may be 0, but not 1
    angle = (np.float32(2 * np.pi) * v.astype(np.float32)).astype(np.float64)  # PyTorch's product is in float32
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _unsigned(name: str, value: int, bits: int) -> int:
    if not isinstance(value, int | np.integer) or not 0 <= value < 2**bits:
        raise RequestError(f"{name} {value} is out of range; give a whole number from 0 to 2**{bits} - 1")
    return int(value)


GENERATORS: Final[Mapping[str, Callable[[int], NoiseGenerator]]] = {"philox": PhiloxGenerator, "torch": TorchGenerator}
