"""From the prompts of a request to what the U-Net is told of them.

Shapes: B images, L tokens, D width of the text embeddings.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.conditioning import Conditioning, mixed
from runtime.prompt import PromptTokenizer
from runtime.session import Array, Session
from runtime.text_encoder import encode_chunks, followed_by

Float32 = npt.NDArray[np.float32]

PROMPTS = ("prompt", "negative_prompt")  # the keys of an image's conditions
GOAL = "to_prompt"  # the key of one that leads to another prompt, with its share of it


@dataclass(frozen=True)
class Group:
    """Images of a request, by their places in it, with prompts of one length, and what the U-Net is told of them."""

    images: list[int]
    conditioning: Conditioning


def encode_prompts(
    encoder: Session,
    tokenizer: PromptTokenizer,
    conditions: Sequence[Mapping[str, Any]],
    clip_skip: int,
    guided: bool = True,
) -> list[Group]:
    """What the U-Net is told of prompts and their negatives: encoder_hidden_states float32 (B, L, D).

    Of an image's prompts the shorter are followed by chunks of the empty one; without guidance the negative one is
    not looked at. A prompt on its way to another is mixed with it, number by number: attention's keys and values
    are linear in what they are made of, so that these are mixed in the same way. Images with the same L are one
    group, so that what an image is told does not depend on others.

    Args:
        encoder: the text encoder.
        tokenizer: of the same model.
        conditions: of every image.
        clip_skip: last layers of the encoder to leave out.
        guided: whether guidance leads away from the negative prompts.

    Raises:
        RequestError: one is not text, or longer than a million characters.
    """
    keys = PROMPTS if guided else PROMPTS[:1]
    said = [[each[key] for key in (*keys, GOAL) if key in each] for each in conditions]
    texts = dict.fromkeys(itertools.chain(*said))
    encoded = {text: encode_chunks(encoder, tokenizer.chunks(text), clip_skip) for text in texts}
    groups: dict[int, list[int]] = {}
    for k, own in enumerate(said):
        groups.setdefault(max(encoded[text].shape[1] for text in own), []).append(k)
    if len({states.shape[1] for states in encoded.values()}) > 1:
        encoded[""] = encode_chunks(encoder, tokenizer.chunks(""), clip_skip)

    def states(own: Mapping[str, Any], key: str, length: int) -> Float32:
        found = followed_by(encoded[own[key]], encoded.get(""), length)
        if key != PROMPTS[0] or GOAL not in own:
            return found
        return mixed(found, states(own, GOAL, length), own["share"])

    def told(images: list[int], key: str, length: int) -> dict[str, Array]:
        return {"encoder_hidden_states": np.concatenate([states(conditions[k], key, length) for k in images])}

    return [
        Group(images, Conditioning(told(images, keys[0], length), told(images, keys[-1], length)))
        for length, images in groups.items()
    ]
