"""Learned words as people give them: files, files with a name, and folders of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.adapter import ForeignGraph
from runtime.bundle import Bundle, TextConditioning
from runtime.embeddings.file import PICTURES, SUFFIXES, carries_embedding, read_embedding
from runtime.embeddings.named import Embeddings, Fit
from runtime.errors import RequestError

File = str | os.PathLike[str]
EmbeddingInput = File | Mapping[str, File] | Sequence[File | tuple[str, File]]

MAX_FILES = 100_000  # of a folder and what is below it, so that "/" is an answer and not an hour
PREVIEW = ".preview"  # as web interfaces call a picture of what an embedding draws
FILE = "a learned word (textual inversion), called by its file's name or by NAME; again for more"
FOLDER = "a folder of them, each read when a prompt names its file"


def add_embedding_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("learned words")
    group.add_argument("--embedding", action="append", default=[], metavar="[NAME=]FILE", help=FILE)
    group.add_argument("--embeddings", action="append", default=[], type=Path, metavar="FOLDER", help=FOLDER)


def embedding_settings(arguments: argparse.Namespace) -> list[Any]:
    """What the flags name, as ``runtime.load`` takes it.

    Raises:
        RequestError: a folder is none.
    """
    for folder in arguments.embeddings:
        if not os.path.isdir(folder):  # Path.is_dir raises an error at names longer than any system takes
            raise RequestError(f"--embeddings {folder} is no folder; a file is given by --embedding")
    return [*map(named_file, arguments.embedding), *arguments.embeddings]


def named_file(word: str) -> Path | tuple[str, Path]:
    """FILE or NAME=FILE; a file that has "=" in its name, and is there, is meant itself."""
    name, equals, file = word.partition("=")
    return (name, Path(file)) if equals and name and not os.path.isfile(word) else Path(word)


def open_embeddings(given: EmbeddingInput, bundle: Bundle, conditioning: TextConditioning) -> Embeddings:
    """Read what is given; files of folders are read when a prompt names them.

    Args:
        given: a file or a folder, a mapping from names to files, or a sequence of files, folders and (name, file).
        bundle, conditioning: the model, and what it says of texts.

    Raises:
        RequestError: a file is missing, damaged, or none of an embedding, does not fit, or is called like another; or
            the model's text encoder takes none.
    """
    if any(isinstance(graph, ForeignGraph) for graph in bundle.graphs["text_encoder"].values()):
        raise RequestError(
            f"{bundle.name} was exported by others, and its text encoder takes no learned words; "
            "leave out the embeddings, or export the model again"
        )
    found, files = [], []
    for name, path in sources(given):
        if os.path.isdir(path):  # as above
            if name is not None:
                raise RequestError(f"{path} is a folder, whose files have names; leave out {name!r}")
            files += files_of(path)
        else:
            found.append(read_embedding(path, name))
    fit = Fit(bundle.name, conditioning.embedding_dim, conditioning.max_length - 2)
    return Embeddings(fit, found, files)


def sources(given: Any) -> Iterator[tuple[str | None, Path]]:
    """Names, or None, and paths.

    Raises:
        RequestError: something else was given.
    """
    if isinstance(given, str | os.PathLike):
        given = [given]
    if isinstance(given, Mapping):
        given = list(given.items())
    for each in given if isinstance(given, Sequence) and not isinstance(given, bytes) else [None]:
        name, path = each if isinstance(each, tuple) and len(each) == 2 else (None, each)
        if not isinstance(name, str | None) or not isinstance(path, str | os.PathLike):
            raise RequestError(
                f"embeddings has {type(each).__name__}; it must be files, folders, pairs of name and file, or a mapping"
            )
        yield name, Path(path)


def files_of(folder: Path) -> list[Path]:
    """The embeddings in a folder and below it, sorted by name; of those called alike the best suffix first.

    Raises:
        RequestError: there are too many files.
    """
    found, seen = [], 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        seen += len(names) + len(folders)
        if seen > MAX_FILES:
            raise RequestError(f"{folder} has more than {MAX_FILES} files in and below it; name a folder of embeddings")
        found += [Path(place, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
    found.sort(key=lambda path: (path.stem, SUFFIXES.index(path.suffix.lower()), path))
    files = filter(Path.is_file, found)  # a pipe would be waited for
    return [path for path in files if path.suffix.lower() not in PICTURES or is_embedding(path)]


def is_embedding(picture: Path) -> bool:
    """Whether a picture carries one; most show what an embedding draws."""
    return not picture.stem.endswith(PREVIEW) and carries_embedding(picture)
