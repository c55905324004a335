"""Proves what weights make of a text encoder's states: louder tokens, at the mean that the chunk had if it had one."""

from __future__ import annotations

import numpy as np

from runtime.text_encoder import weighted

WEIGHTS = np.array([1.0, 1.4])


def test_a_chunk_keeps_its_mean() -> None:
    states = np.array([[[1.5, -0.5], [2.0, 0.1]]], np.float32)
    louder = weighted(states, WEIGHTS)
    assert np.isclose(louder.mean(), states.mean())
    assert np.allclose(louder / states, louder[0, 0, 0] / states[0, 0, 0] * WEIGHTS[:, None])


def test_a_mean_that_is_the_rest_of_what_cancels_is_not_restored() -> None:
    states = np.array([[[1.0, -1.0], [1.001, -1.0]]], np.float32)
    assert np.array_equal(weighted(states, WEIGHTS), (states.astype(np.float64) * WEIGHTS[:, None]).astype(np.float32))
