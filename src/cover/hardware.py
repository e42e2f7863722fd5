"""Devices: the choice of one, and the speed, memory and links of common accelerators.

Sources are NVIDIA's data sheets "H100 Tensor Core GPU" (SXM5, PCIe), "H200 Tensor Core GPU" (SXM), "A100 Tensor Core
GPU" (40 and 80 GB SXM) and "L40S", and for the RTX 4090 the white paper "Ada GPU architecture", appendix A. Speeds are
those of dense matrices with sums in float32; the data sheets print twice as much, for sparse matrices. Float32 is
without TF32, as PyTorch multiplies by default. Speeds of links are for one direction, half of the sum in the data
sheets. The CPU of this machine is measured.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

from cover.containers import physical_memory
from cover.errors import UserError, nearest
from cover.machine import cores as cores_here

# Usable fraction of the memory on a data sheet. Driver, context and error correction take the rest: an 80 GB H100
# offers about 79 GiB, a 48 GB L40S about 45.
USABLE = 0.94
MATMUL_SIDE, MATMUL_ROUNDS = 1536, 5
# Fraction of the peak speed that training reaches: assumed for a GPU, about as measured for a CPU (docs/planning.md).
GPU_MFU, CPU_MFU = 0.40, 0.50
GPU_CORES = 12  # CPU cores for each GPU, as in common machines with eight GPUs (assumed)


@dataclass(frozen=True)
class Device:
    """An accelerator or a CPU.

    `bf16`, `fp32`: peak speed in FLOP/s. `memory`: usable bytes. `link`: bytes/s in one direction to the other devices
    of a machine. `beside`: number of devices in a machine. `shared`: whether its cores also read the data, as those of
    a CPU do.
    """

    name: str
    title: str
    bf16: float
    fp32: float
    memory: float
    link: float = 0.0
    beside: int = 8
    shared: bool = False

    def peak(self, bf16: bool) -> float:
        """The peak speed of matrix products in FLOP/s, in bfloat16 or float32."""
        return self.bf16 if bf16 else self.fp32


@dataclass(frozen=True)
class Cluster:
    """The devices of a planned run.

    `devices`: their number. `beside`: number of devices in a machine. `cores`: CPU cores for each device. `mfu`: the
    fraction of the peak speed that training reaches. `network`: bytes/s of each device to other machines. `assumed`:
    whether `mfu` is a default.
    """

    device: Device
    devices: int
    beside: int
    cores: int
    mfu: float
    network: float
    assumed: bool = False

    @property
    def link(self) -> float:
        """Bytes/s of the slowest link in a ring through all devices."""
        return self.device.link if self.devices <= self.beside else min(self.device.link, self.network)


def _gpu(name: str, title: str, bf16: float, fp32: float, gib: int, link: float) -> Device:
    """A GPU from its data sheet: TFLOP/s, GiB and GB/s."""
    return Device(name, title, bf16 * 1e12, fp32 * 1e12, USABLE * gib * 2**30, link * 1e9)


DEVICES = {
    device.name: device
    for device in (
        _gpu("h200", "NVIDIA H200 SXM", 989, 67, 141, 450),
        _gpu("h100", "NVIDIA H100 SXM", 989, 67, 80, 450),
        _gpu("h100-pcie", "NVIDIA H100 PCIe", 756, 51, 80, 64),
        _gpu("a100-80", "NVIDIA A100 80 GB SXM", 312, 19.5, 80, 300),
        _gpu("a100-40", "NVIDIA A100 40 GB SXM", 312, 19.5, 40, 300),
        _gpu("l40s", "NVIDIA L40S", 362, 91.6, 48, 32),
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 165.2, 82.6, 24, 32),
    )
}
# Patterns of the names that CUDA reports -> our names. The first match counts, so specific patterns come first.
_CUDA_NAMES = (
    (r"H200", "h200"),
    (r"H100.*PCIe", "h100-pcie"),
    (r"H100", "h100"),
    (r"A100.*80", "a100-80"),
    (r"A100", "a100-40"),
    (r"L40S", "l40s"),
    (r"RTX 4090", "rtx4090"),
)


def find_device(name: str) -> Device:
    """A device of the table, `cpu` (the CPU of this machine, measured), or `auto` (the device of this machine).

    Raises `UserError` for an unknown name.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name == "auto":
        return _device_of_this_machine()
    if name == "cpu":
        return _cpu()
    hint = nearest(name, [*DEVICES, "cpu", "auto"])
    raise UserError(f'--device: unknown device "{name}"{hint}; known are {", ".join(DEVICES)}, cpu')


def _device_of_this_machine() -> Device:
    if not torch.cuda.is_available():
        return _cpu()
    title = torch.cuda.get_device_name()
    for pattern, name in _CUDA_NAMES:
        if re.search(pattern, title):
            return DEVICES[name]
    raise UserError(f"--device: this machine's {title} is not in the table; name a similar one: {', '.join(DEVICES)}")


def _cpu() -> Device:
    memory = physical_memory()
    bf16, fp32 = (matmul_rate(kind) for kind in (torch.bfloat16, torch.float32))
    return Device("cpu", f"this CPU, {torch.get_num_threads()} threads", bf16, fp32, memory, beside=1, shared=True)


def matmul_rate(dtype: torch.dtype) -> float:
    """The speed of a large square matrix product on this CPU in FLOP/s, the best of a few rounds."""
    a, b = (torch.randn(MATMUL_SIDE, MATMUL_SIDE).to(dtype) for _ in range(2))
    return 2 * MATMUL_SIDE**3 / min(_seconds(a, b) for _ in range(MATMUL_ROUNDS))


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.mm(a, b)
    return time.perf_counter() - began


def make_cluster(
    device: Device, devices: int, cores: int | None, mfu: float | None, network_gbit: float, beside: int | None = None
) -> Cluster:
    """A cluster, with defaults for `cores`, `mfu` and `beside` if they are None.

    `network_gbit`: Gbit/s of each device to other machines. Raises `UserError` for an impossible value.
    """
    if device.shared and devices > 1:
        raise UserError(f"--gpus: {devices} of this CPU cannot be planned; name a device, as in --device h200")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu: {mfu:g} is no fraction of the peak; give one above 0 and at most 1, as in 0.4")
    if not network_gbit > 0:
        raise UserError(f"--network: {network_gbit:g} is no speed; give Gbit/s for each device, as in 400")
    default_cores, default_mfu = (cores_here(), CPU_MFU) if device.shared else (GPU_CORES, GPU_MFU)
    beside, cores, network = beside or device.beside, cores or default_cores, network_gbit * 1e9 / 8
    return Cluster(device, devices, beside, cores, mfu or default_mfu, network, assumed=mfu is None)


AUTO = ("cuda", "mps", "xpu")  # kinds of devices that `auto` tries, in this order
TESTED = ("cuda", "cpu")


def pick_device(name: str) -> torch.device:
    """The torch device of a name. Raises `UserError` if it cannot be used.

    `auto` is the first of `AUTO` that can be used, or else the CPU. It is said if one is there and cannot be used, and
    if this software has never been tested on the one that is chosen.
    """
    if name == "auto":
        return _first_usable()
    try:
        return _tried(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device: {name or 'an empty name'} cannot be used: {_reason(error)}; give auto, cpu, cuda, cuda:1, mps"
            " or xpu"
        ) from None


def _first_usable() -> torch.device:
    from cover.console import say  # here, because a training step needs torch alone

    for kind in AUTO:
        if not (torch.backends.mps if kind == "mps" else getattr(torch, kind)).is_available():
            continue
        try:
            device = _tried(kind)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            say(f"device auto: {kind} is there but cannot be used: {_reason(error)}")
            continue
        if kind not in TESTED:
            say(f"device auto: {kind}, on which nothing has been tested; if results look wrong, give --device cpu")
        return device
    return torch.device("cpu")


def _tried(name: str) -> torch.device:
    device = torch.device(name)
    torch.zeros(1, device=device).item()  # reading a number fails on a device that computes nothing
    return device


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]


def wide_dtype(device: torch.device | str) -> torch.dtype:
    """The dtype of exact sums: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64
