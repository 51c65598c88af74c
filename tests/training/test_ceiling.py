"""The yardsticks of a run's cost."""

import torch

from mmalign.training.ceiling import EnergyMeter, matmul_flops


def test_the_rate_is_that_of_a_machine_and_draws_no_random_numbers():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    rate = matmul_flops(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e15
    assert torch.equal(torch.get_rng_state(), state)
    assert matmul_flops(torch.device("cpu"), torch.float32) == rate  # measured once


def test_energy_adds_up_over_packages_and_over_a_counter_that_starts_again(tmp_path):
    def show(zone: str, joules: float, name: str) -> None:
        folder = tmp_path / zone
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(str(round(joules * 1e6)))
        (folder / "max_energy_range_uj").write_text("1000000000")

    show("intel-rapl:0", 990.0, "package-0")
    show("intel-rapl:1", 5.0, "package-1")
    show("intel-rapl:0:0", 1.0, "core")  # which belongs to its package
    show("intel-rapl:2", 1.0, "psys")  # which the packages belong to
    meter = EnergyMeter(torch.device("cpu"), tmp_path)
    show("intel-rapl:0", 20.0, "package-0")
    show("intel-rapl:1", 7.5, "package-1")
    show("intel-rapl:0:0", 500.0, "core")
    show("intel-rapl:2", 600.0, "psys")
    meter.update()
    assert meter.joules == 32.5


def test_no_counter_is_not_zero(tmp_path):
    meter = EnergyMeter(torch.device("cpu"), tmp_path)
    meter.update()
    assert meter.joules is None
