"""A linear layer's weights, in the layout the machine multiplies fastest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_PACK_ROWS = 32  # the row count oneDNN chooses its weight layout for; others work with it too


class Linear:
    """y = x @ weight.T + bias; weight (outputs, inputs) and bias (outputs,) are taken over.

    On a CPU the weights are reordered once for oneDNN (as torch.compile's freezing does it), which
    would otherwise happen in every call: about 1.5x at 8 to 64 rows. The plain layout serves where the
    reordered one is not there: another device, a torch without oneDNN.
    """

    __slots__ = ("_bias", "_packed", "_plain", "inputs", "outputs")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.outputs, self.inputs = weight.shape
        self._bias = bias
        self._plain: Tensor | None = weight
        self._packed: Tensor | None = None
        if _can_pack(weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)  # noqa: SLF001 -- the operator's public name
            self._plain = None

    def __call__(self, x: Tensor) -> Tensor:
        """(T, inputs) to (T, outputs)."""
        if self._packed is not None:
            packed: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 -- same
                x, self._packed, self._bias, "none", [], ""
            )
            return packed
        assert self._plain is not None
        return functional.linear(x, self._plain, self._bias)


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's
        return False
    if weight.dtype == torch.bfloat16:
        return native_bfloat16()
    return weight.dtype == torch.float32


def native_bfloat16() -> bool:
    """Does this CPU multiply bfloat16 in hardware (AMX or AVX512-BF16)?"""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 -- torch offers no public name
