"""CLIP's tokenizer from ``vocab.json`` and ``merges.txt``, in the format of the tokenizers library.

Folders that others exported hold the two files of the original release (Radford et al. 2021), and the rules that are
not in them are those of CLIP: composed Unicode, single spaces, lower case; words, contractions, single digits and runs
of signs apart; bytes as printable letters; ``</w>`` at the end of a word.
"""

from __future__ import annotations

import json

from runtime.errors import BundleError

END_OF_WORD = "</w>"
BEGIN_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer(vocab: bytes, merges: bytes, where: str) -> bytes:
    """A tokenizer file.

    Args:
        vocab: JSON, token -> id.
        merges: two parts of a token on each line, what is merged first above.
        where: the folder, for messages.

    Raises:
        BundleError: the files are not what they should be, or do not fit each other.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids, pairs = read_vocab(vocab, where), read_merges(merges, where)
    try:
        model = models.BPE(ids, pairs, unk_token=END_OF_TEXT, end_of_word_suffix=END_OF_WORD)
    except Exception as error:  # the library's exceptions have no class of their own
        raise BundleError(
            f"{where}: merges.txt does not fit vocab.json ({' '.join(str(error).split())[:200]})"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(BEGIN_OF_TEXT, normalized=True), AddedToken(END_OF_TEXT, normalized=False)]
    )
    return tokenizer.to_str().encode()


def read_vocab(data: bytes, where: str) -> dict[str, int]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: vocab.json is not JSON ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(value, dict) or not value or not all(type(number) is int for number in value.values()):
        raise BundleError(f"{where}: vocab.json must map tokens to whole numbers")
    if sorted(value.values()) != list(range(len(value))):
        raise BundleError(f"{where}: the ids of vocab.json must be 0 to {len(value) - 1}, each once")
    missing = [token for token in (BEGIN_OF_TEXT, END_OF_TEXT) if token not in value]
    if missing:
        raise BundleError(f"{where}: vocab.json lacks {' and '.join(missing)}; it is not CLIP's")
    return value


def read_merges(data: bytes, where: str) -> list[tuple[str, str]]:
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BundleError(f"{where}: merges.txt is not UTF-8 (at byte {error.start})") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        parts = line.rstrip("\r").split(" ")
        if parts == [""] or (number == 1 and line.startswith("#version")):
            continue
        if len(parts) != 2:
            raise BundleError(f"{where}: line {number} of merges.txt is {line[:40]!r}; it must be two parts of a token")
        pairs.append((parts[0], parts[1]))
    return pairs
