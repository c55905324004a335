"""How a prompt becomes ids in a folder that others exported."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.bundle import File, TextConditioning
from runtime.errors import BundleError
from runtime.foreign.parts import component_file, count, read_bytes, read_config, said
from runtime.foreign.signature import GraphSignature
from runtime.foreign.tokenizer import BEGIN_OF_TEXT, END_OF_TEXT, clip_tokenizer

MAX_TOKENIZER_BYTES = 64 * 2**20
# Those of Stable Diffusion 1, for folders that do not say.
MAX_LENGTH, NUM_HIDDEN_LAYERS, EMBEDDING_DIM = 77, 12, 768
# A tokenizer that knows no limit says 10^30.
NO_LENGTH = 10**4


def read_tokenizer(folder: Path) -> tuple[File, bytes]:
    """The tokenizer in the tokenizers library's format, and the file it is or comes from."""
    whole = "tokenizer/tokenizer.json"
    if (folder / whole).exists():
        return component_file(folder, whole), read_bytes(folder, whole, MAX_TOKENIZER_BYTES)
    vocab, merges = "tokenizer/vocab.json", "tokenizer/merges.txt"
    data = [read_bytes(folder, name, MAX_TOKENIZER_BYTES) for name in (vocab, merges)]
    return component_file(folder, vocab), clip_tokenizer(data[0], data[1], str(folder / "tokenizer"))


def read_conditioning(folder: Path, unet: GraphSignature, tokenizer: File, tokenizer_json: bytes) -> TextConditioning:
    ids = token_ids(tokenizer_json, str(folder / tokenizer.name))
    config, where = read_config(folder, "tokenizer/tokenizer_config.json")
    special, _ = read_config(folder, "tokenizer/special_tokens_map.json")
    tokens = {}
    for name, default in (("bos_token", BEGIN_OF_TEXT), ("eos_token", END_OF_TEXT), ("pad_token", END_OF_TEXT)):
        token = special.get(name) or config.get(name) or default
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str) or token not in ids:
            raise BundleError(f"{where}: {name} {token!r} is not in the vocabulary")
        tokens[f"{name}_id"] = ids[token]
    length = said(config, "model_max_length", int, MAX_LENGTH, where)
    encoder, encoder_where = read_config(folder, "text_encoder/config.json")
    return TextConditioning(
        tokenizer=tokenizer,
        max_length=length if 3 <= length <= NO_LENGTH else MAX_LENGTH,
        vocab_size=max(ids.values()) + 1,
        embedding_dim=text_width(folder, unet),
        num_hidden_layers=count(encoder, "num_hidden_layers", NUM_HIDDEN_LAYERS, encoder_where),
        clip_skip=0,
        known_words=None,
        **tokens,
    )


def token_ids(tokenizer_json: bytes, where: str) -> dict[str, int]:
    """Every token of a tokenizer file and its id."""
    try:
        value = json.loads(tokenizer_json)
        ids = {str(token): int(number) for token, number in value["model"]["vocab"].items()}
        return ids | {str(token["content"]): int(token["id"]) for token in value["added_tokens"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{where} is not a byte-pair tokenizer of the tokenizers library") from error


def text_width(folder: Path, unet: GraphSignature) -> int:
    states = [spec for spec in unet.inputs if spec.name == "encoder_hidden_states"]
    width = states[0].shape[-1] if states and states[0].shape else None
    if isinstance(width, int) and width > 0:
        return width
    config, where = read_config(folder, "unet/config.json")
    return count(config, "cross_attention_dim", EMBEDDING_DIM, where)
