"""The compiled functions, with types. Pointers in, pointers out: who calls keeps the arrays alive."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.native.plain import multiply, quantised_blocks

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
_CHECK_ROWS: Final = (1, 3, 70)


class CMatrix(Structure):
    """`matrix` of `src/matrix.h`."""

    _fields_ = (
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("bits", c_int32),
        ("tiles", c_void_p),
        ("bias", c_void_p),
    )


class CLayer(Structure):
    """`layer` of `src/model.h`."""

    _fields_ = (
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("qkv", CMatrix),
        ("out", CMatrix),
        ("gate", CMatrix),
        ("up", CMatrix),
        ("down", CMatrix),
    )


_SHAPE = "layers hidden heads kv_heads dim intermediate vocab context block_tokens most_rows"


class CShape(Structure):
    """`shape` of `src/model.h`."""

    _fields_ = (
        *((name, c_int32) for name in _SHAPE.split()),
        ("eps", c_float),
        ("softmax_scale", c_float),
    )


_ARRAYS = "tokens positions starts table_starts tables wanted_rows logits bad"


class CCall(Structure):
    """`call` of `src/model.h`."""

    _fields_ = (
        *((name, c_int32) for name in ("rows", "pieces", "wanted")),
        *((name, c_void_p) for name in _ARRAYS.split()),
    )


def address(array: NDArray[Any] | None) -> int | None:
    """Where an array's numbers lie; they must lie in a row."""
    if array is None:
        return None
    assert array.flags.c_contiguous
    return array.ctypes.data


class Library:
    """An open library. Raises `OSError` when it is none of ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = functions = ctypes.CDLL(str(path))
        try:
            functions.kvgate_packed_bytes.restype = c_int64
            functions.kvgate_new.restype = c_void_p
            functions.kvgate_forward.restype = c_int64
            functions.kvgate_forward.argtypes = (c_void_p, POINTER(CCall), c_int32)
            self.lanes = int(functions.kvgate_lanes())
        except AttributeError as error:
            raise OSError(str(error)) from error

    def packed_bytes(self, outputs: int, inputs: int, bits: int) -> int:
        return int(self._functions.kvgate_packed_bytes(outputs, inputs, bits))

    def pack(self, blocks: Bytes, outputs: int, inputs: int, bits: int, tiles: Bytes) -> CMatrix:
        """GGUF's blocks (outputs, inputs / 32 * block) into `tiles`, which holds zeros."""
        where = c_void_p(address(tiles))
        self._functions.kvgate_pack(c_void_p(address(blocks)), outputs, inputs, bits, where)
        return CMatrix(outputs, inputs, bits, address(tiles), None)

    def linear(self, matrix: CMatrix, x: Floats) -> Floats:
        """(M, inputs) to (M, outputs), one thread. Raises `MemoryError`."""
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty((len(x), matrix.outputs), np.float32)
        given, made = c_void_p(address(x)), c_void_p(address(y))
        if self._functions.kvgate_linear(byref(matrix), given, len(x), made):
            raise MemoryError
        return y

    def new(
        self,
        shape: CShape,
        layers: ctypes.Array[CLayer],
        embedding: CMatrix,
        head: CMatrix,
        *,
        arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]],
        threads: int,
    ) -> int:
        """A model's handle; arrays: final norm, cosine, sine, pool. Raises `MemoryError`."""
        pointers = (c_void_p(address(array)) for array in arrays)
        made = self._functions.kvgate_new(
            byref(shape), layers, byref(embedding), byref(head), *pointers, threads
        )
        if not made:
            raise MemoryError
        return int(made)

    def forward(self, model: int, call: CCall, threads: int) -> int:
        """Run a call; returns for how many ns the first thread waited for others."""
        waited = int(self._functions.kvgate_forward(model, byref(call), threads))
        if waited < 0:
            raise MemoryError
        return waited

    def bind(self, model: int) -> None:
        """Give the calling thread, which will call `forward`, a core of its own if there are enough."""
        self._functions.kvgate_bind(c_void_p(model))

    def free(self, model: int) -> None:
        self._functions.kvgate_free(c_void_p(model))

    def agrees(self) -> bool:
        """Does a linear layer give the bits of the plain twin, in 4 and in 8 bits, for few rows and many?"""
        dice = np.random.default_rng(7)
        for bits in (4, 8):
            weight = dice.standard_normal((64, 96), np.float32)
            blocks = quantised_blocks(weight, bits)
            tiles = np.zeros(self.packed_bytes(64, 96, bits), np.uint8)
            matrix = self.pack(blocks, 64, 96, bits, tiles)
            for rows in _CHECK_ROWS:
                x = dice.standard_normal((rows, 96), np.float32)
                if not np.array_equal(self.linear(matrix, x), multiply(blocks, bits, x)):
                    return False
        return True
