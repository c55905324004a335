"""Proves that both noise generators give their published numbers.

Philox 4x32-10 by the known answers of its authors, the Mersenne Twister by the one in the C++ standard, and the `torch`
generator both by committed numbers and, where torch is installed, by torch itself: bits exactly, normals within 2e-6.
"""

import math

import numpy as np
import pytest

from runtime.errors import RequestError
from runtime.noise import (
    GENERATORS,
    TorchGenerator,
    image_seed,
    mersenne_words,
    noise_generator,
    philox4x32,
    philox_words,
)

SEEDS = [0, 1, 2**32 - 1, 2**32 + 5, 2**63 + 11, 2**64 - 1]
SIZES = [1, 2, 3, 7, 15, 16, 17, 31, 64, 100, 784, 16384]
TOLERANCE = 2e-6

# Counter, key and answer from `kat_vectors` of the Random123 distribution. The third counts in the digits of pi.
PHILOX_KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

# Draws of 3, 17, 2, 16 and 1 numbers from one generator of PyTorch 2.13: its three ways of making normal numbers, and a
# spare one that is made in the first draw and in the third, and used after the blocks that follow each.
TORCH_DRAWS = {
    0: """
        1.54099607 -0.293428898 -2.17878938
        -0.356128365 -0.157712445 1.44366014 0.266049415 0.166455343 0.87438184 -0.143473849 -0.111609332 -0.613583088
        1.25900924 2.00498056 0.0537369028 0.618056655 -0.412802219 -0.841064811 -2.31604195 -0.102309652
        0.568431258 0.745542109
        -0.678746223 0.938260734 0.488869816 -0.673089921 0.872831225 1.05535746 0.17784372 -0.230335474 -0.306704193
        -1.58099389 1.70664334 -0.446217179 0.7440207 1.52097952 3.41050267 -1.53118432
        -0.246046618
    """,
    2**32 + 5: """
        -0.486780763 -0.603821576 -0.55809623
        0.258251637 -0.434022963 0.352335453 -0.0645514801 0.768629372 0.923347175 -0.558322966 0.779625773 -0.261668354
        0.0316568948 -1.1724143 -1.50694036 -0.148104623 0.371454746 0.22725141 -0.0647351742 -0.147893593
        0.667524278 1.37904656
        -0.0196696706 0.22779794 -0.398505032 0.816791952 0.409641892 0.216234729 1.0898087 0.173027143 2.1502583
        -2.2280848 -1.28966904 -1.79272604 0.877188206 2.1641233 -0.185533687 0.990644217
        -1.43186259
    """,
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def torch_tolerance(torch):
    """PyTorch rounds the angle in another way where it has no AVX2, and so differs from itself by up to 2.8e-6."""
    return TOLERANCE if torch.backends.cpu.get_cpu_capability().startswith("AVX") else 2 * TOLERANCE


def words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


def draw_all(generator, sizes):
    return np.concatenate([generator.draw((size,)) for size in sizes])


# --- Philox -----------------------------------------------------------------------------------------------------------


def test_philox_known_answers():
    for counter, key, answer in PHILOX_KNOWN_ANSWERS:
        key_words = tuple(words(key).tolist())
        np.testing.assert_array_equal(philox4x32(words(counter)[:, None], key_words)[:, 0], words(answer))


def test_philox_blocks_do_not_depend_on_their_neighbours():
    counters = np.stack([words(counter) for counter, _, _ in PHILOX_KNOWN_ANSWERS], axis=1)
    together = philox4x32(counters, (1, 2))
    for column in range(3):
        np.testing.assert_array_equal(together[:, [column]], philox4x32(counters[:, [column]], (1, 2)))


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize("draw", [0, 1, 2**32 - 1])
def test_philox_words_put_draw_and_index_in_the_counter_and_the_seed_in_the_key(seed, draw):
    drawn = philox_words(seed, draw, 300)
    assert drawn.shape == (300, 2)
    assert drawn.dtype == np.uint32
    for index in (0, 1, 299):
        counter = np.array([[draw], [0], [index], [0]], np.uint32)
        np.testing.assert_array_equal(drawn[index], philox4x32(counter, (seed % 2**32, seed // 2**32))[:2, 0])


def test_philox_draw_is_the_one_the_web_uis_publish():
    published = """
        -0.92466259 -0.42534415 -2.6438457 0.14518388 -0.12086647 -0.57972564
        -0.62285122 -0.32838709 -1.07454231 -0.36314407 -1.67105067 2.26550497
    """
    drawn = noise_generator("philox", 0).draw((3, 4))
    assert drawn.shape == (3, 4)
    # Half of the last digit printed, and half of the last bit of float32: less than an angle rounded to float32 does.
    np.testing.assert_allclose(drawn.ravel(), np.array(published.split(), np.float64), rtol=2**-24, atol=5e-9)


# The last two seeds give a g0 of 88 and a g1 of 28: so small that the 2^-33 added to u and v shows in float32.
@pytest.mark.parametrize("seed", [2**63 + 11, 2210430, 2879409])
def test_philox_normals_are_those_of_the_words(seed):
    generator = noise_generator("philox", seed)
    for draw in range(3):
        for (g0, g1), normal in zip(philox_words(seed, draw, 5).tolist(), generator.draw((5,)), strict=True):
            u, v = g0 / 2**32 + 2**-33, g1 / 2**32 + 2**-33
            assert normal == pytest.approx(math.sqrt(-2 * math.log(u)) * math.sin(2 * math.pi * v), rel=1e-7)


# --- the Mersenne Twister and PyTorch ---------------------------------------------------------------------------------


def test_mersenne_known_answers():
    outputs = mersenne_words(5489, 10_000)
    assert outputs.dtype == np.uint32
    assert outputs[0] == 3499211612  # the authors' generator with its default seed
    assert outputs[-1] == 4123659995  # ISO C++, [rand.predef]: the 10000th number of std::mt19937


def test_mersenne_takes_the_low_half_of_the_seed():
    np.testing.assert_array_equal(mersenne_words(2**32 + 5489, 10), mersenne_words(5489, 10))
    np.testing.assert_array_equal(mersenne_words(2**64 - 1, 10), mersenne_words(2**32 - 1, 10))
    assert (mersenne_words(5490, 10) != mersenne_words(5489, 10)).all()


@pytest.mark.parametrize("seed", TORCH_DRAWS)
def test_torch_draws_as_committed(seed):
    drawn = draw_all(noise_generator("torch", seed), [3, 17, 2, 16, 1])
    np.testing.assert_allclose(drawn, np.array(TORCH_DRAWS[seed].split(), np.float32), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", SEEDS)
def test_words_and_uniforms_equal_those_of_torch(torch, seed):
    outputs = mersenne_words(seed, 2000).astype(np.uint64)
    generator = torch.Generator("cpu").manual_seed(seed)
    pairs = torch.empty(1000, dtype=torch.int64).random_(-(2**63), None, generator=generator).numpy().view(np.uint64)
    np.testing.assert_array_equal(outputs.reshape(-1, 2), np.stack([pairs >> 32, pairs % 2**32], axis=1))

    generator.manual_seed(seed)
    mine = TorchGenerator(seed)
    np.testing.assert_array_equal(mine._uniforms(1000), torch.rand(1000, generator=generator).double().numpy())
    doubles = torch.rand(500, generator=generator, dtype=torch.float64)
    assert [mine._uniform_53() for _ in range(500)] == doubles.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_first_draw_equals_torch(torch, torch_tolerance, seed):
    for size in SIZES:
        expected = torch.randn(size, generator=torch.Generator("cpu").manual_seed(seed))
        drawn = noise_generator("torch", seed).draw((size,))
        np.testing.assert_allclose(drawn, expected.numpy(), rtol=0, atol=torch_tolerance, err_msg=f"size {size}")


@pytest.mark.parametrize("seed", SEEDS)
def test_sequences_of_draws_equal_torch(torch, torch_tolerance, seed):
    shapes = [(1,), (3, 5, 7), (1,), (2, 1), (4, 4), (1, 28, 28), (3,), (), (1, 1, 15), (4, 64, 63), (0,), (2, 7), (1,)]
    mine = noise_generator("torch", seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    for shape in shapes:
        expected, drawn = torch.randn(shape, generator=generator).numpy(), mine.draw(shape)
        assert drawn.shape == shape
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=torch_tolerance, err_msg=f"shape {shape}")


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATORS)
def test_noise_is_standard_normal(name):
    count = 2**17
    drawn = noise_generator(name, 2).draw((count,)).astype(np.float64)
    # Each estimate is held to four of its own standard deviations.
    assert abs(drawn.mean()) < 4 * math.sqrt(1 / count)
    assert abs((drawn**2).mean() - 1) < 4 * math.sqrt(2 / count)
    assert abs((drawn**3).mean()) < 4 * math.sqrt(15 / count)
    assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96 / count)
    # Kolmogorov and Smirnov: the largest distance between both distribution functions, at a level of 1 in 1000.
    normal_cdf = np.array([math.erf(x / math.sqrt(2)) for x in np.sort(drawn)]) / 2 + 0.5
    assert np.abs(normal_cdf - (np.arange(count) + 0.5) / count).max() < 1.95 / math.sqrt(count)


@pytest.mark.parametrize("name", GENERATORS)
def test_elements_draws_and_seeds_are_independent(name):
    count = 2**16
    generator = noise_generator(name, 7)
    first, second = generator.draw((count,)), generator.draw((count,))
    pairs = {"next draw": (first, second)}
    pairs |= {f"seed {seed}": (first, noise_generator(name, seed).draw((count,))) for seed in (6, 8)}
    pairs |= {f"lag {lag}": (first[:-lag], first[lag:]) for lag in (1, 2, 8, 16, 28)}
    for what, (one, other) in pairs.items():
        for power in (1, 2):  # squares too: the two numbers of a Box-Muller pair share their radius
            correlation = np.corrcoef(one**power, other**power)[0, 1]
            assert abs(correlation) < 4 / math.sqrt(len(one)), (what, power, correlation)


@pytest.mark.parametrize("name", GENERATORS)
def test_draws_and_seeds_differ_and_repeat(name):
    generator, again, other = (noise_generator(name, seed) for seed in (3, 3, 4))
    draws = [g.draw((4, 8, 8)) for g in (generator, generator, other)]
    for one in range(3):
        for two in range(one):
            assert np.mean(draws[one] == draws[two]) < 0.01
    np.testing.assert_array_equal(again.draw((4, 8, 8)), draws[0])
    np.testing.assert_array_equal(again.draw((256,)), draws[1].ravel())


def test_only_philox_tells_seeds_apart_by_their_upper_half():
    for name, same in {"philox": False, "torch": True}.items():
        low, high = (noise_generator(name, seed).draw((64,)) for seed in (9, 2**32 + 9))
        assert np.array_equal(low, high) == same


LARGEST = 2**64 - 1


@pytest.mark.parametrize(
    ("seed", "k", "expected"),
    [(7, 0, 7), (7, 3, 10), (LARGEST, 0, LARGEST), (LARGEST, 2, 1), (np.uint64(LARGEST), 2, 1)],
)
def test_image_seed_wraps_around(seed, k, expected):
    assert image_seed(seed, k) == expected


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, math.nan, "7"])
def test_seed_out_of_range_is_one_clear_line(name, seed):
    message = f"seed {seed} is out of range; give a whole number from 0 to 2**64 - 1"
    for refused in (lambda: noise_generator(name, seed), lambda: image_seed(seed, 0)):
        with pytest.raises(RequestError) as error:
            refused()
        assert str(error.value) == message


def test_unknown_generator_and_draw_are_one_clear_line():
    with pytest.raises(RequestError, match=r"^noise generator 'nv' is unknown; choose philox or torch$"):
        noise_generator("nv", 0)
    with pytest.raises(RequestError, match=r"^draw 4294967296 is out of range; give a whole number from 0 to 2\*\*32"):
        philox_words(0, 2**32, 1)
    with pytest.raises(RequestError, match=r"^seed -1 is out of range"):
        mersenne_words(-1, 1)
