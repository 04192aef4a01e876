import pytest

from modeling.step.devices import describe_devices, peak_flops


@pytest.mark.parametrize(
    ("device_name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
    ],
)
def test_known_devices_have_a_peak(device_name, peak):
    assert peak_flops(device_name) == peak


@pytest.mark.parametrize(
    "device_name", ["", "GPU", "NVIDIA L40", "NVIDIA RTX A4000", "NVIDIA T400", "TPU v4"]
)
def test_other_devices_have_none(device_name):
    assert peak_flops(device_name) is None


@pytest.mark.parametrize(
    ("names", "described"),
    [
        ([], "the CPU; no GPU was found"),
        (["Tesla T4"], "Tesla T4"),
        (["Tesla T4"] * 3, "3 x Tesla T4"),
    ],
)
def test_devices_are_described(names, described):
    assert describe_devices(names) == described
