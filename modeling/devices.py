"""What a run computes on: names, and the peak that its speed is compared with."""

import re

# Dense bfloat16 (float16 on older ones) peaks in FLOP/s, from the makers' data sheets, by words of the
# device's name; the first that fits counts.
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
    """The dense bfloat16 peak of a device, in FLOP/s, or None where it is not known."""
    # Whole words, for an RTX A4000 is no A40.
    fits = (peak for name, peak in _PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name))
    return next(fits, None)


def describe_devices(names: list[str]) -> str:
    """What is computed on, for people.

    Args:
      names: of the GPUs, if there are any.
    """
    if not names:
        return "the processor; no GPU was found"
    unused = f" ({len(names) - 1} more are not used)" if len(names) > 1 else ""
    return names[0] + unused
