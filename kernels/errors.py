"""What the arithmetic may raise.

KernelError
├── ShapeError       operands do not fit together
├── BackendMissing   the library, driver or device a backend needs is absent
├── CompileError     a kernel did not build
├── OutOfMemory      the device has no room for what was asked
└── DeviceLost       the device stopped answering
"""


class KernelError(Exception):
    """Root of everything raised by a backend."""


class ShapeError(KernelError):
    """Operands do not fit together."""


class BackendMissing(KernelError):
    """The library, driver or device a backend needs is absent; the message names the cure."""


class CompileError(KernelError):
    """A kernel did not build."""


class OutOfMemory(KernelError):
    """The device has no room for what was asked; it still answers."""


class DeviceLost(KernelError):
    """The device stopped answering; nothing more can be done on it in this process."""
