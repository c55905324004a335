"""Programs that ``python -m runtime benchmark`` runs beside the runtime; see ``README.md`` in this folder."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in ``runtime``, and before anything here loads ONNX Runtime
