"""Arithmetic: arrays in, arrays out."""

from kernels.backend import Backend, open_backend
from kernels.errors import BackendMissing, CompileError, DeviceLost, KernelError, OutOfMemory, ShapeError
from kernels.tensor import Pending, QuantTensor, Ring, Tensor

__all__ = [
    "Backend", "BackendMissing", "CompileError", "DeviceLost", "KernelError", "OutOfMemory", "Pending",
    "QuantTensor", "Ring", "ShapeError", "Tensor", "open_backend",
]
