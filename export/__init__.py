"""What is shipped: trained networks as ONNX graphs, held against PyTorch, in a bundle that says everything."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in ``runtime``, and before anything here loads ONNX Runtime
