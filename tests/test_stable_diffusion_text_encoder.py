"""Proves that the text encoder computes what transformers' CLIPTextModel computes, and its three additions: learned
tokens without a copy of the table, clip_skip as a tensor, and a clear refusal of rows that are too long."""

from __future__ import annotations

import pytest
import torch
from random_weights import POCKET, random_state
from reference_models import assert_parity, one_thread, part, reference_text_encoder
from torch.utils._python_dispatch import TorchDispatchMode

from training.stable_diffusion.checkpoint.networks import fill, without_weights
from training.stable_diffusion.text_encoder import CLIPTextModel

CONFIG = POCKET.text_encoder
NO_EXTRA = torch.zeros(1, CONFIG.hidden_size)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def state():
    return random_state(POCKET)


@pytest.fixture(scope="module")
def model(state) -> CLIPTextModel:
    networks = without_weights(POCKET)
    fill(networks, "random", {name: name for name in state}, state)
    return networks.text_encoder


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 8), (3, 77)])
@pytest.mark.parametrize("clip_skip", range(CONFIG.num_hidden_layers + 1))
def test_equals_transformers(model, state, batch, length, clip_skip):
    reference = reference_text_encoder(CONFIG, part(state, "text_encoder"))
    hidden_states = reference(ids(batch, length), output_hidden_states=True).hidden_states
    inner = getattr(reference, "text_model", reference)
    expected = inner.final_layer_norm(hidden_states[-(clip_skip + 1)])
    assert_parity(model(ids(batch, length), NO_EXTRA, torch.tensor(clip_skip)), expected)


def test_outlier_channels_are_there(model, state):
    """Otherwise the test above would be easier than CLIP is."""
    reference = reference_text_encoder(CONFIG, part(state, "text_encoder"))
    last = reference(ids(2, 77), output_hidden_states=True).hidden_states[-1].abs().mean(dim=(0, 1))
    assert last.max() > 20 * last.median()


def test_extra_embeddings_are_rows_after_the_vocabulary(model, state):
    extra = torch.randn(3, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1))
    name = "text_model.embeddings.token_embedding.weight"
    weights = part(state, "text_encoder")
    longer = torch.cat([weights[name], extra])
    larger = CLIPTextModel(type(CONFIG)(**{**vars(CONFIG), "vocab_size": len(longer)}))
    larger.load_state_dict(weights | {name: longer})
    mixed = ids(2, 20)
    mixed[:, 3], mixed[0, 7], mixed[1, 19] = CONFIG.vocab_size, CONFIG.vocab_size + 2, CONFIG.vocab_size + 1
    assert torch.equal(model(mixed, extra, torch.tensor(0)), larger(mixed, NO_EXTRA, torch.tensor(0)))


def test_the_table_is_not_copied(model):
    class LargestResult(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not result._is_view():
                self.elements = max(self.elements, result.numel())
            return result

    with LargestResult() as largest:
        model(ids(1, 2), NO_EXTRA, torch.tensor(0))
    assert 0 < largest.elements < CONFIG.vocab_size * CONFIG.hidden_size


def test_later_tokens_do_not_change_earlier_ones(model):
    first, second = ids(1, 20, seed=1), ids(1, 20, seed=2)
    second[:, :12] = first[:, :12]
    one, other = (model(tokens, NO_EXTRA, torch.tensor(0)) for tokens in (first, second))
    assert torch.equal(one[:, :12], other[:, :12])
    assert not torch.equal(one[:, 12], other[:, 12])


def test_too_many_tokens_are_refused(model):
    with pytest.raises(ValueError, match="78 tokens in a row; the text encoder has 77 positions"):
        model(ids(1, 78), NO_EXTRA, torch.tensor(0))


@pytest.mark.slow
def test_clip_skip_stays_an_input_when_traced(model):
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=77)
    exported = torch.export.export(
        model, (ids(2, 8), NO_EXTRA, torch.tensor(0)), dynamic_shapes=({0: batch, 1: length}, None, None)
    ).module()
    for clip_skip in (0, 1, 3):
        arguments = ids(3, 77), NO_EXTRA, torch.tensor(clip_skip)
        assert_parity(exported(*arguments), model(*arguments))
