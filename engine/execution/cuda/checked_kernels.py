"""Checked kernels: a launch that fails says so itself, not a later call that happens to wait for it."""

from engine.execution.cuda.device import Device
from engine.kernels.cuda.kernels import Kernel, Kernels


class KernelError(RuntimeError):
    """A launch that failed, by the kernel's name."""


def checked(kernels: Kernels, device: Device) -> Kernels:
    """Return kernels each of which waits for the device; they are slow, and cannot be captured."""
    return Kernels(*[_checked(name, getattr(kernels, name), device) for name in Kernels._fields])


def _checked(name: str, kernel: Kernel, device: Device) -> Kernel:
    def launch(*args: object, **kwargs: object) -> None:
        try:
            kernel(*args, **kwargs)
            device.record().synchronize()
        except Exception as error:
            raise KernelError(f"kernel {name} failed: {error}") from error

    return launch
