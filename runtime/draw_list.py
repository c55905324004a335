"""A list of prompts or labels to a folder of pictures, which a run that was stopped continues.

Picture k of a list, counted over all its lines, has the list's seed + k where its line names none, as image k of any
request has; variations that one line asks for share the seed of its first picture. The list's seed is kept in the
index, so that a list that is continued gives the same pictures.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arguments import parse_labels
from runtime.class_to_image import ClassToImage
from runtime.errors import PromptWarning, RequestError, one_line
from runtime.limits import check_whole
from runtime.noise import image_seed
from runtime.picture_index import Index, Record, locked, read_index, remove_leftovers
from runtime.pipeline import Pipeline
from runtime.prompt_encoding import PROMPTS
from runtime.prompt_list import MAX_PICTURES, Entry
from runtime.recipe import Recipe
from runtime.steps import Progress
from runtime.text_to_image import TextToImage

SLUG_CHARACTERS = 40
SUFFIX = ".png"
# What a model of one kind is told, and one of the other is not.
OF_TEXT = {"prompt", "negative_prompt", "clip_skip"}
OF_CLASSES = {"label"}
# What is said of an image to begin at.
OF_IMAGES = {"strength", "mask", "extend", "paste_back"}


@dataclass(frozen=True)
class Picture:
    """One picture of a list.

    Attributes:
        number: its place in the list, from 1.
        entry: the line that asks for it.
        settings: how it is made, as arguments of ``Pipeline.recipe``; the same object for all that are made alike.
        recipe: what the pipeline makes of them, but for an image to begin at and its mask, of which there may be
            thousands.
        condition: what it shows, and which seed it varies towards.
        place: how far its seed is from the list's.
        seed: its own; None until the list's is known.
    """

    number: int
    entry: Entry
    settings: Mapping[str, Any]
    recipe: Recipe
    condition: Mapping[str, Any]
    place: int
    seed: int | None

    def record(self, name: str) -> Record:
        """What the index says of it, but for what becomes of it."""
        settings = self.recipe.metadata | {"seed": self.seed, **self.condition}
        file = f"{self.number:05d}{'-' * bool(name)}{name}{SUFFIX}"
        return Record(self.number, self.entry.line, dict(self.entry.asked), settings, file)


@dataclass(frozen=True)
class Report:
    """What became of a list.

    Attributes:
        seed: of the list.
        drawn: pictures that were drawn now.
        kept: pictures that were there already.
        failures: what could not be drawn, with the reason.
    """

    seed: int
    drawn: int
    kept: int
    failures: tuple[Record, ...]


def draw_list(
    pipeline: Pipeline,
    entries: Sequence[Entry],
    folder: Path,
    defaults: Mapping[str, Any] | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Draw a list into a folder, one PNG for each picture, beside ``index.jsonl``.

    Everything is checked before anything is drawn. A picture that fails does not keep the others from being drawn.

    Args:
        pipeline: the model.
        entries: as ``read_prompt_list`` reads them.
        folder: made if need be; pictures of the same list that are there already are not drawn again.
        defaults: what entries do not say: arguments of a pipeline's call, and "count".
        seed: of the list. Without it that of the folder's index or, if there is none yet, one that is drawn.
        overwrite: replace pictures whose line has changed, and files of the same name.
        progress: called with (rows done, rows in all) after each row.

    Raises:
        RequestError: an entry is wrong, with its line; a file is in the way; or a file cannot be written. What is drawn
            so far stays, and the same call continues.
        BundleError, EngineError: the model's files are damaged, or the provider cannot be had.
    """
    wanted = pictures(pipeline, entries, defaults or {})
    first = None if seed is None else image_seed(seed, 0)
    with locked(folder):
        index = read_index(folder, secrets.randbelow(2**32))
        index.seed = index.seed if first is None else first
        wanted = [with_seed(each, index.seed) for each in wanted]
        left = [each for each in wanted if not index.keeps(each.record(name_of(pipeline, each)), overwrite)]
        remove_leftovers(folder)
        index.save()
        warn_of_prompts(pipeline, left)
        failures = draw_all(pipeline, left, index, progress)
        index.save()
    return Report(index.seed, len(left) - len(failures), len(wanted) - len(left), tuple(failures))


def pictures(pipeline: Pipeline, entries: Iterable[Entry], defaults: Mapping[str, Any]) -> list[Picture]:
    """The pictures of a list, checked; nothing is computed.

    Raises:
        RequestError: an entry does not suit the model, with its line; or there are more pictures than can be named.
    """
    known: dict[str, tuple[Mapping[str, Any], Recipe]] = {}
    found: list[Picture] = []
    for entry in entries:
        values = {**defaults, **entry.values}
        if "image" not in values:  # what flags say of one is for the lines that have it
            values = {name: value for name, value in values.items() if name in entry.values or name not in OF_IMAGES}
        try:
            count, seed = values.pop("count", 1), values.pop("seed", None)
            check_whole("count", count, least=1, most=MAX_PICTURES)
            conditions = conditions_of(pipeline, values, count)
            made = recipe_of(pipeline, values, known)
            settings = made[1].settings
            places = [0 if settings.variation else k for k in range(len(conditions))]
            seeds = [None if seed is None else image_seed(seed, place) for place in places]
        except RequestError as error:
            raise RequestError(f"{entry.where}: {one_line(error)}") from error
        before, alike = len(found), zip(settings.varied(conditions), places, seeds, strict=True)
        found += [
            Picture(before + k, entry, *made, condition, before + place, seed)
            for k, (condition, place, seed) in enumerate(alike, 1)
        ]
        if len(found) > MAX_PICTURES:
            raise RequestError(f"{entry.where}: the list asks for more than {MAX_PICTURES} pictures; divide it")
    return found


def conditions_of(pipeline: Pipeline, values: dict[str, Any], count: int) -> Sequence[Mapping[str, Any]]:
    """What each picture of an entry shows; it is taken out of ``values``.

    Raises:
        RequestError: the entry is for a model of another kind, or not one that the model can draw.
    """
    name = pipeline.bundle.name
    foreign = sorted(values.keys() & (OF_CLASSES if isinstance(pipeline, TextToImage) else OF_TEXT))
    if isinstance(pipeline, TextToImage):
        if foreign:
            raise RequestError(f"{name} draws what a prompt says; leave out {foreign[0]}")
        return pipeline.conditions(values.pop("prompt"), values.pop("negative_prompt", None), count)
    if foreign:
        raise RequestError(f"{name} draws classes and takes no text; leave out {foreign[0]}, or choose a --model")
    assert isinstance(pipeline, ClassToImage)
    labels = parse_labels(str(values.pop("label")), pipeline.conditioning)
    return pipeline.conditions(np.repeat(labels, count).tolist())


def recipe_of(
    pipeline: Pipeline, settings: Mapping[str, Any], known: dict[str, tuple[Mapping[str, Any], Recipe]]
) -> tuple[Mapping[str, Any], Recipe]:
    """How an entry's pictures are made; one recipe serves all entries that say the same, since plans take time."""
    key = repr(sorted((name, value) for name, value in settings.items() if name != "plan"))
    if key not in known:
        known[key] = settings, replace(pipeline.recipe(**settings), image=None, mask=None)
    return known[key]


def with_seed(picture: Picture, seed: int) -> Picture:
    """A picture whose seed, unless its line names one, follows from the list's."""
    return picture if picture.seed is not None else replace(picture, seed=image_seed(seed, picture.place))


def name_of(pipeline: Pipeline, picture: Picture) -> str:
    """What it shows, in letters that any file system takes; empty if no such letters are left."""
    text = picture.condition.get("prompt")
    if text is None:
        assert isinstance(pipeline, ClassToImage)
        text = pipeline.conditioning.names[picture.condition["class_label"]]
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:SLUG_CHARACTERS].strip("-")


def warn_of_prompts(pipeline: Pipeline, left: Iterable[Picture]) -> None:
    """Say now, and with its line, of which prompt something will be cut off."""
    if not isinstance(pipeline, TextToImage):
        return
    said = set()
    for picture in left:
        for text in (picture.condition[key] for key in PROMPTS):
            if text in said:  # other lines may say the same, or a flag for all of them
                continue
            said.add(text)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                pipeline.tokenizer.chunks(text)
            for each in caught:
                warnings.warn(f"{picture.entry.where}: {each.message}", PromptWarning, stacklevel=3)


def draw_all(pipeline: Pipeline, left: Sequence[Picture], index: Index, progress: Progress | None) -> list[Record]:
    """Draw pictures and note each in the index; what failed is returned."""
    batches = list(batched(left))
    rows, done = sum(batch[0].recipe.rows for batch in batches), 0
    failures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)  # they were given with their lines
        for batch in batches:

            def advance(row: int, total: int, done: int = done, own: int = batch[0].recipe.rows) -> None:
                if progress:  # prompts of several lengths walk the plan more than once
                    progress(done + row * own // total, rows)

            for record, data in drawn(pipeline, batch, advance):
                index.add(record, data)
                failures += [record] if data is None else []
            done += batch[0].recipe.rows
    return failures


def batched(left: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
    """Pictures that follow each other and are made alike, as many at a time as their recipe's batch size says."""
    begin = 0
    for end in range(1, len(left) + 1):
        recipe = left[begin].recipe
        if end == len(left) or left[end].recipe is not recipe or end - begin == recipe.settings.batch_size:
            yield left[begin:end]
            begin = end


def drawn(
    pipeline: Pipeline, batch: Sequence[Picture], progress: Progress | None
) -> Iterator[tuple[Record, bytes | None]]:
    """Each picture's record with its file's bytes, or without where it failed.

    Of a batch that fails the pictures are tried one by one.
    """
    conditions, seeds = [each.condition for each in batch], [each.seed or 0 for each in batch]
    result = failure = None
    try:
        recipe = pipeline.recipe(**batch[0].settings) if "image" in batch[0].settings else batch[0].recipe
        result = pipeline.draw(recipe, conditions, seeds, progress)
    except RequestError as error:
        failure = str(error)
    except MemoryError:
        failure = "there is not enough memory for this; ask for a smaller picture, or a smaller batch"
    if result is None and len(batch) > 1:
        for picture in batch:
            yield from drawn(pipeline, [picture], None)
        return
    for k, picture in enumerate(batch):
        record = picture.record(name_of(pipeline, picture))
        if result is None:
            yield replace(record, file=None, error=failure), None
        else:
            data = result.encoded(k, SUFFIX)
            yield replace(record, settings=result.metadata_of(k), sha256=hashlib.sha256(data).hexdigest()), data
