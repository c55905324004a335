"""``python -m runtime check``: replay a bundle's conformance file, so that this machine proves itself.

The file holds inputs, expected outputs and tolerances for every graph, for the noise, for plans and for whole
pictures. Every host, in whatever language, has this command and reads the same file.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.bundle import CONFORMANCE, DEFAULT_MODEL, Bundle, File, TextConditioning, open_bundle
from runtime.conformance import Array, Case, read_conformance
from runtime.engine import PROVIDERS
from runtime.errors import BundleError, DiffusionError
from runtime.loading import make_pipeline
from runtime.networks import Networks, runs_on
from runtime.noise import GENERATORS, mersenne_words, noise_generator, philox_words
from runtime.plan import compile_plan
from runtime.prompt import PromptTokenizer
from runtime.prompt_syntax import shortened
from runtime.session import Session, as_inputs, choose_provider
from runtime.text_to_image import MAX_SIDE
from runtime.verified import compare_sha256, hash_file

PLAN_TENSORS = ("signal_scales", "noise_scales", "timesteps", "guidance", "weights", "x0_weights")
MAX_DRAW = 1000  # of a case of noise
MAX_NUMBERS = 2**26  # of all its draws together; a conformance file has no room for more


@dataclass(frozen=True)
class Outcome:
    """How one case ended: what it was, the largest difference found, and the largest allowed."""

    case: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=check)
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, help="a bundle's folder or name (default: %(default)s)"
    )
    parser.add_argument("--provider", choices=("auto", *PROVIDERS), default="auto")


def check(arguments: argparse.Namespace) -> int:
    """Verify every hash, replay every case, and print one line for each."""
    bundle = open_bundle(arguments.model)
    provider, why = choose_provider(arguments.provider)
    print(why)
    for file in bundle.files():
        print(check_hash(bundle, file))
    for line in left_out(bundle, provider):
        print(line)
    outcomes = replay(bundle, provider)
    for outcome in outcomes:
        verdict = "pass" if outcome.passed else "FAIL"
        print(
            f"{verdict}  {outcome.case}: largest difference {outcome.difference:.3g}, allowed {outcome.tolerance:.3g}"
        )
    failed = sum(not outcome.passed for outcome in outcomes)
    print(f"{bundle.name}: {len(outcomes) - failed} of {len(outcomes)} cases pass")
    return 1 if failed else 0


def check_hash(bundle: Bundle, file: File) -> str:
    """Hash a file again, whatever is remembered of it; returns the line to print.

    Raises:
        BundleError: it is another file than the manifest's.
    """
    path = bundle.path(file)
    if file.sha256 is None:
        return f"----  {file.name}: whoever made the folder gave no SHA-256"
    try:
        actual = hash_file(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from error
    compare_sha256(path, actual, file.sha256)
    return f"pass  {file.name}: SHA-256"


def left_out(bundle: Bundle, provider: str) -> list[str]:
    """A line for each graph whose cases are not replayed, since it is for other execution providers."""
    graphs = [graph for variants in bundle.graphs.values() for graph in variants.values()]
    return [
        f"----  {graph.file.name}: for {', '.join(graph.providers)}, not run on {PROVIDERS[provider]}"
        for graph in graphs
        if not runs_on(graph, provider)
    ]


def replay(bundle: Bundle, provider: str) -> list[Outcome]:
    """Replay every case of the bundle's conformance file, but for graphs that are for other execution providers.

    Raises:
        BundleError: the file is damaged or speaks of kinds of case that this version does not know.
    """
    cases, tensors = read_conformance(bundle)
    outcomes = []
    for number, value in enumerate(cases):
        case = Case(value, f"{bundle.folder / CONFORMANCE}: case {number}", tensors)
        try:
            outcomes += KINDS[case.one_of("kind", tuple(KINDS))](bundle, provider, case)
        except DiffusionError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise BundleError(f"{case.where} is malformed ({error!r})") from error
        case.finish()
    return outcomes


def largest_difference(mine: Array, expected: Array) -> float:
    """max |mine - expected|; infinite where shapes differ or a value is not a number."""
    if mine.shape != expected.shape:
        return float("inf")
    difference = np.abs(mine.astype(np.float64) - expected.astype(np.float64))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def replay_graph(bundle: Bundle, provider: str, case: Case) -> list[Outcome]:
    graph, variant = case.take("graph", str), case.take("variant", str)
    described = bundle.graph(graph, variant)
    inputs = case.tensors_by_name("inputs", tuple(spec.name for spec in described.inputs))
    expected = case.tensors_by_name("outputs", tuple(spec.name for spec in described.outputs))
    tolerance = case.tolerance()
    if not runs_on(described, provider):
        return []
    session = Session(bundle, described, provider)
    outputs = session.run(**as_inputs(session, inputs))
    return [
        Outcome(f"graph {graph}/{variant} {name}", largest_difference(outputs[name], value), tolerance)
        for name, value in expected.items()
    ]


def replay_bits(bundle: Bundle, provider: str, case: Case) -> list[Outcome]:
    generator, seed = case.one_of("generator", tuple(GENERATORS)), case.seed()
    if generator == "philox":
        expected = case.tensor("tensor", dimensions=2)
        words = philox_words(seed, case.count("draw", least=0, most=2**32 - 1), len(expected))
    else:
        expected = case.tensor("tensor", dimensions=1)
        case.count("draw", least=0, most=0)
        words = mersenne_words(seed, len(expected))
    return [Outcome(f"bits {generator} seed {seed}", largest_difference(words, expected), 0.0)]


def replay_noise(bundle: Bundle, provider: str, case: Case) -> list[Outcome]:
    name, seed, expected = case.one_of("generator", tuple(GENERATORS)), case.seed(), case.tensor("tensor")
    # Those before it are drawn too, and a stranger's file is not to keep this machine busy for ever.
    draw = case.count("draw", least=0, most=min(MAX_DRAW, MAX_NUMBERS // max(expected.size, 1)))
    generator = noise_generator(name, seed)
    for _ in range(draw + 1):
        noise = generator.draw(expected.shape)
    title = f"noise {name} seed {seed} draw {draw} of {expected.size}"
    return [Outcome(title, largest_difference(noise, expected), case.tolerance())]


def replay_plan(bundle: Bundle, provider: str, case: Case) -> list[Outcome]:
    """Compile the plan anew, from the sampler and options that it names."""
    name = case.one_of("plan", tuple(bundle.plans))
    shipped, tolerance = bundle.plans[name], case.tolerance()
    mine = compile_plan(bundle.noise_schedule, shipped.sampler, shipped.num_inference_steps, **shipped.options)
    return [
        Outcome(f"plan {name} {key}", largest_difference(getattr(mine, key), expected), tolerance)
        for key, expected in case.tensors_by_name("tensors", PLAN_TENSORS).items()
    ]


def replay_tokens(bundle: Bundle, provider: str, case: Case) -> list[Outcome]:
    if not isinstance(bundle.conditioning, TextConditioning):
        raise BundleError(f"{bundle.folder / CONFORMANCE} has tokens, but {bundle.name} takes no text")
    prompt, expected = case.take("prompt", str), case.tensor("tensor")
    with warnings.catch_warnings(action="ignore"):  # a case may be too long, to see where it is cut off
        ids = PromptTokenizer(bundle, bundle.conditioning).ids(prompt)[0]
    return [Outcome(f"tokens {shortened(prompt)!r}", largest_difference(ids, expected), 0.0)]


def replay_picture(bundle: Bundle, provider: str, case: Case) -> list[Outcome]:
    pipeline = make_pipeline(bundle, Networks(bundle, provider, low_memory=True), "")
    further: dict[str, Any] = {}
    if isinstance(bundle.conditioning, TextConditioning):
        condition = case.take("prompt", str)
        further |= {"negative_prompt": case.take("negative_prompt", str)}
        further |= {name: case.count(name, most=MAX_SIDE) for name in ("width", "height")}
    else:
        condition = case.take("class_labels", list)
    plan, seed = case.one_of("plan", tuple(bundle.plans)), case.seed()
    sample, image, tolerance = case.tensor("sample"), case.tensor("image"), case.tolerance()
    result = pipeline(
        condition,
        **further,
        plan=bundle.plans[plan],
        guidance_scale=case.number("guidance_scale"),
        seed=seed,
        rng=case.one_of("generator", tuple(GENERATORS)),
    )
    name = f"picture {plan} seed {seed}"
    return [
        Outcome(f"{name} sample", largest_difference(result.sample, sample), tolerance),
        Outcome(f"{name} image", largest_difference(result.images, image), 1.0),
    ]


KINDS: dict[str, Callable[[Bundle, str, Case], list[Outcome]]] = {
    "graph": replay_graph,
    "bits": replay_bits,
    "noise": replay_noise,
    "plan": replay_plan,
    "tokens": replay_tokens,
    "picture": replay_picture,
}
