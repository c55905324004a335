"""What runs: the whole sampling loop in NumPy and ONNX Runtime, without PyTorch.

>>> from runtime import load
>>> pipeline = load("mnist-paper")
>>> result = pipeline(class_labels=[7, 2], seed=0)
>>> result.images.shape
(2, 28, 28, 1)
"""

from runtime.errors import BundleError, DiffusionError, EngineError, RequestError
from runtime.pipeline import Pipeline, Result, Step, load

__all__ = ["BundleError", "DiffusionError", "EngineError", "Pipeline", "RequestError", "Result", "Step", "load"]
