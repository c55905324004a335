"""What runs: the whole sampling loop in NumPy and ONNX Runtime, without PyTorch.

>>> from runtime import load
>>> pipeline = load("pocket")
>>> result = pipeline("a red sneaker on a white background", seed=0)
>>> result.images.shape
(1, 64, 64, 3)

A bundle of classes takes labels instead: ``load("mnist-paper")(class_labels=[7, 2], seed=0)``.
"""

import os

from runtime.animation import Animation, interpolate
from runtime.cancel import CancelToken
from runtime.errors import (
    BundleError,
    Cancelled,
    DiffusionError,
    EngineError,
    PromptWarning,
    RequestError,
    TimedOut,
)
from runtime.loading import load
from runtime.pipeline import Pipeline
from runtime.result import Result
from runtime.steps import Step
from runtime.version import __version__

__all__ = [
    "Animation",
    "BundleError",
    "CancelToken",
    "Cancelled",
    "DiffusionError",
    "EngineError",
    "Pipeline",
    "PromptWarning",
    "RequestError",
    "Result",
    "Step",
    "TimedOut",
    "__version__",
    "interpolate",
    "load",
]

# Since 1.29 ONNX Runtime reports its use to its makers, also on Linux and macOS, and decides so when it is loaded. Who
# draws offline does not expect that; who wants it sets this to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
