"""The devices that a run computes on: names, the peak of their speed, and how they are divided."""

import re

from modeling.job.group import ProcessGroup
from pipeline.errors import UserError, listed

# Dense bfloat16 peaks (float16 on older devices) in FLOP/s, from the makers' data sheets. The first
# words that stand in a device's name count.
_PEAK_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device_name: str) -> float | None:
    """The dense bfloat16 peak of a device, in FLOP/s; None if it is not known."""
    # Whole words, because an RTX A4000 is not an A40.
    fits = (peak for name, peak in _PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name))
    return next(fits, None)


def check_context_parallel(size: int, num_devices: int, local_count: int, hint: str = "") -> None:
    """Checks that each device is in one context, and each process has whole contexts or is in one.

    Args:
      size: N, the number of devices that divide each sequence.
      num_devices: the number of devices of all processes.
      local_count: the number of devices of each process.
      hint: what else the error may say.

    Raises:
      UserError: the devices cannot be divided in this way.
    """
    if num_devices % size:
        raise UserError(
            f"--context_parallel={size} does not divide the number of devices, {num_devices}: give "
            f"a divisor of it{hint}"
        )
    if local_count % size and size % local_count:
        raise UserError(
            f"--context_parallel={size} must divide the {local_count} devices of a process, or be "
            "a multiple of them"
        )


def check_backend_of_context(size: int, backend: str) -> None:
    """Checks that a backend can divide each sequence among `size` devices.

    Raises:
      UserError: it cannot.
    """
    if size > 1 and backend != "jax":
        raise UserError(
            f"--context_parallel={size} needs --backend=jax, because TensorFlow's XLA cannot "
            "exchange keys and values"
        )


def describe_devices(names: list[str]) -> str:
    """The devices of a process, for people.

    Args:
      names: the names of its GPUs; empty if it has none.
    """
    if not names:
        return "the CPU; no GPU was found"
    return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"


def describe_group(
    group: ProcessGroup, num_devices: int, batch_size: int, context_parallel: int = 1
) -> str:
    """The processes and devices that share a batch, for people.

    Args:
      group: the processes.
      num_devices: the number of devices of all processes.
      batch_size: B, the number of sequences per update.
      context_parallel: the number of devices that divide each sequence.
    """
    unit = f"for every {context_parallel} of them" if context_parallel > 1 else "a device"
    part = batch_size * context_parallel // num_devices
    devices = f"{num_devices} devices, batch {batch_size}: {part} {unit}"
    if group.num_processes == 1:
        return devices
    hosts = list(dict.fromkeys(group.hosts))
    where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts ({listed(hosts)})"
    return f"{group.num_processes} processes on {where}, found in {group.found_in}; {devices}"
