"""How a request is drawn in the memory that it may have, chosen before it begins.

Without ``max_memory`` a request is drawn as ever, refused where it needs far more memory than there is, and warned of
where it may just not fit. With it the estimate of ``runtime.memory`` is planned with. What costs least is given up
first: networks that wait for their turn, which have to be loaded again; then, of the network that is too tall, the
halves of guidance in one evaluation, the batch, and at last the VAE's view of the whole picture.
"""

from __future__ import annotations

import logging
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TypeVar

from runtime.available_memory import available_bytes, held_bytes
from runtime.bundle import Bundle
from runtime.errors import RequestError
from runtime.memory import PROCESS, Demand, MemoryPlan, estimate, gigabytes, latent_sides
from runtime.networks import Networks
from runtime.prompt_syntax import shortened
from runtime.recipe import Recipe
from runtime.vae import LEAST_TILE, TILING, Tiling, quarters

logger = logging.getLogger(__name__)
T = TypeVar("T")

SLACK = 1.3  # what needs so many times what there is does not fit, however rough the estimate
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)}
ONE_NETWORK, ONE_IMAGE = "low_memory (--low-memory)", "batch_size=1 (--batch-size 1)"


def parse_memory(value: object) -> int:
    """Bytes of a figure such as "3GB", "3000MB" or "2.8GiB", or of a whole number of bytes.

    Raises:
        RequestError: it is no amount of memory.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = (
        re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*([kmgt]?i?)b\s*", value.lower())
        if isinstance(value, str)
        else None
    )
    if found is not None and found[2] in UNITS and (count := int(Fraction(found[1]) * UNITS[found[2]])) > 0:
        return count
    shown = repr(shortened(value)) if isinstance(value, str) else shortened(repr(value))
    raise RequestError(f"max_memory is {shown}; it must be an amount of memory, such as 3GB, 3000MB or 2.8GiB")


def plan_request(
    bundle: Bundle, networks: Networks, recipe: Recipe, roles: Sequence[str], images: int, tiles: Tiling | None = None
) -> MemoryPlan:
    """How a request is drawn, and whether it can be; what a graphics card has is not known here.

    Args:
        bundle, networks: the model, and how it is held.
        recipe: how the images are made.
        roles: the networks that make them, in their order.
        images: how many.
        tiles: what the VAE is divided into where nothing else is chosen.

    Raises:
        RequestError: ``max_memory`` is too little for it; or there is far too little, unless that is to be ignored.
    """
    batch = min(recipe.settings.batch_size, images)
    usual = MemoryPlan(batch, networks.one_network, networks.in_turn, tiles)
    here = roles if networks.provider == "cpu" else ()
    graphs = {role: bundle.graph(role, networks.variant_of(role)) for role in here}
    demand = Demand(*recipe.size, graphs, images, recipe.guided, networks.process or PROCESS)
    chosen = usual
    if networks.max_memory is not None:
        chosen = plan_memory(bundle, demand, usual, networks.max_memory)
        if chosen != networks.planned:  # a list's pictures are mostly drawn alike
            logger.info("within %s: %s", gigabytes(networks.max_memory), chosen)
            networks.planned = chosen
    if not networks.ignore_memory:
        check_memory(bundle, demand, chosen)
    return chosen


def plan_memory(bundle: Bundle, demand: Demand, usual: MemoryPlan, limit: int) -> MemoryPlan:
    """The first way to draw a request, from what costs least on, that is estimated to stay within ``limit`` bytes.

    Args:
        bundle, demand: what is asked of which model.
        usual: how it would be drawn without a limit; nothing that this saves is given up again.
        limit: bytes of the whole process.

    Raises:
        RequestError: there is none; the message says what the least is.
    """
    if estimate(bundle, demand, usual).peak <= limit:
        return usual

    def fits(role: str) -> Callable[[MemoryPlan], bool]:
        return lambda memory: estimate(bundle, demand, memory).alone(role) <= limit

    # One at a time no network's peak depends on what another does without.
    memory = replace(usual, one_network=True)
    if demand.guided and not fits("unet")(memory):
        memory = replace(memory, in_turn=True)
    memory = replace(memory, batch_size=largest_batch(memory, fits("unet")))
    for role in ("vae_encoder", "vae_decoder"):
        memory = first(tilings(bundle, demand, memory), fits(role))
    needed = estimate(bundle, demand, memory)
    if needed.peak > limit:
        raise RequestError(
            f"max_memory {gigabytes(limit)} is too little for {demand.width}x{demand.height}: with {memory} it needs "
            f"at least {gigabytes(needed.peak, up=True)} ({needed}); {less_than(bundle, demand, memory, limit)}"
        )
    return memory


def largest_batch(memory: MemoryPlan, fits: Callable[[MemoryPlan], bool]) -> int:
    """The most images at once that fit, and one where none do."""
    smaller = range(1, memory.batch_size + 1)
    return max(1, bisect_right(smaller, False, key=lambda count: not fits(replace(memory, batch_size=count))))


def tilings(bundle: Bundle, demand: Demand, memory: MemoryPlan) -> Iterator[MemoryPlan]:
    """The plan as it is, and then with more and more tiles to the longer side, each as small as their number allows.

    Neighbours overlap by a quarter of a tile, so that n tiles of size t cover n t - (n - 1) t / 4.
    """
    yield memory
    if bundle.latents is None:
        return
    side = max(latent_sides(demand.height, demand.width, bundle.latents))
    count, tile = 2, side
    while tile > LEAST_TILE:
        tile = max(LEAST_TILE, -(-4 * side // (3 * count + 1)))
        if memory.tiles is None or tile < memory.tiles.tile:
            yield replace(memory, tiles=quarters(tile))
        count += 1


def first(choices: Iterator[T], fits: Callable[[T], bool]) -> T:
    """The first that fits, or else the last."""
    for choice in choices:
        if fits(choice):
            break
    return choice


def less_than(bundle: Bundle, demand: Demand, memory: MemoryPlan, limit: int) -> str:
    """What is left to try where ``memory`` gives up all that can be."""
    one = estimate(bundle, replace(demand, images=1), memory)
    if one.peak <= limit:
        return "fewer images at a time (--count) need less, or a list (--prompts), which is written one by one"
    weights = one.process + one.images + max((stage.loading for stage in one.stages), default=0)
    if weights > limit:
        return f"the weights alone need {gigabytes(weights, up=True)}, whatever the size"
    return "a smaller width and height (--size) need less"


def check_memory(bundle: Bundle, demand: Demand, memory: MemoryPlan) -> None:
    """Refuse a request that needs far more memory than there is, and warn of one that may not fit.

    What this process holds already counts as there: it is mostly networks of earlier requests, which are used again.

    Raises:
        RequestError: with what is needed, what there is, and what needs less.
    """
    free = available_bytes()
    if free is None:
        return
    there = free + held_bytes()
    needed = estimate(bundle, demand, memory)
    if needed.peak <= there:
        return
    message = (
        f"{demand.width}x{demand.height}, {memory.batch_size} at once, needs about {gigabytes(needed.peak)} of memory "
        f"({needed}), and there are {gigabytes(there)}; {advice(bundle, demand, memory, there)}"
    )
    if needed.peak > SLACK * there:
        raise RequestError(f"{message}; ignore_memory (--ignore-memory) tries it all the same")
    warnings.warn(message, stacklevel=4)


def advice(bundle: Bundle, demand: Demand, memory: MemoryPlan, there: int) -> str:
    """The mildest change that would do, with what it needs, or else what is left to try."""
    low = replace(memory, one_network=True, in_turn=True, tiles=memory.tiles or TILING)
    changes = [
        (ONE_IMAGE, replace(memory, batch_size=1)),
        (ONE_NETWORK, low),
        (f"{ONE_NETWORK} with {ONE_IMAGE}", replace(low, batch_size=1)),
    ]
    for words, changed in changes:
        peak = estimate(bundle, demand, changed).peak
        if changed != memory and peak <= there:
            return f"{words} needs {gigabytes(peak)}"
    if estimate(bundle, replace(demand, images=1), replace(memory, batch_size=1)).peak <= there:
        return "fewer images at a time (--count) need less, or a list (--prompts), which is written one by one"
    return f"a smaller width and height (--size) need less, and {ONE_NETWORK} with {ONE_IMAGE}"
