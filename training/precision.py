"""Mixed precision: matrix products and convolutions in bfloat16, everything that adds up in float32."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

MixedPrecision = Literal["no", "bf16"]
MIXED_PRECISIONS: tuple[MixedPrecision, ...] = ("no", "bf16")


def refuse_unknown(mixed_precision: str) -> None:
    """Say which there are.

    Raises:
        ValueError: it is none of ``MIXED_PRECISIONS``.
    """
    if mixed_precision not in MIXED_PRECISIONS:
        raise ValueError(f"mixed_precision {mixed_precision!r} is unknown; choose {' or '.join(MIXED_PRECISIONS)}")


def add_option(command: argparse.ArgumentParser) -> None:
    """Add ``--mixed-precision``."""
    command.add_argument(
        "--mixed-precision",
        choices=("auto", *MIXED_PRECISIONS),
        default="auto",
        help="auto: bf16 where the processor has it",
    )


def chosen(mixed_precision: str) -> MixedPrecision:
    """What "auto" stands for on this machine, or else the choice itself."""
    if mixed_precision == "auto":
        return "bf16" if bf16_is_faster() else "no"
    refuse_unknown(mixed_precision)
    return "bf16" if mixed_precision == "bf16" else "no"


def bf16_is_faster() -> bool:
    """Whether the processor multiplies in bfloat16 natively; elsewhere autocast emulates it, slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextlib.contextmanager
def autocast(device: torch.device, mixed_precision: MixedPrecision) -> Iterator[None]:
    """Networks that are called within compute in this precision, and may answer in bfloat16."""
    if mixed_precision == "no":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16):
        if device.type != "cpu":
            yield
            return
        with Float32Attention():
            yield


class Float32Attention(TorchFunctionMode):
    """Attention in float32 within autocast on the CPU.

    Its gradient in bfloat16 takes five times as long there (PyTorch 2.13, a processor with AMX: 285 ms against 57 for
    the 23 attentions of the pocket model), which is more than all other operations gain.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs or {})
        with torch.autocast("cpu", enabled=False):
            return func(*(arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args), **kwargs or {})
