"""Frequency policies as sysfs shows them."""

import pytest

from pxsched.host import frequency
from pxsched.root import Root

BASE = "sys/devices/system/cpu"


@pytest.fixture
def put(tmp_path):
    def write(relative: str, text: str) -> None:
        path = tmp_path / BASE / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    write.root = Root(str(tmp_path))
    write.base = tmp_path / BASE
    return write


def policy(put, number: int, cpus: str, *, link: bool = True, **files: str) -> None:
    directory = f"cpufreq/policy{number}" if link else f"cpu{number}/cpufreq"
    put(f"{directory}/related_cpus", cpus)
    for name, text in files.items():
        put(f"{directory}/{name}", text)
    for cpu in map(int, cpus.split()) if link else ():
        (put.base / f"cpu{cpu}").mkdir(parents=True, exist_ok=True)
        (put.base / f"cpu{cpu}/cpufreq").symlink_to(f"../cpufreq/policy{number}")


def test_cpus_that_share_a_policy_are_read_as_one(put):
    available = "schedutil performance"
    policy(put, 0, "0 1 4 5", scaling_governor="schedutil", scaling_available_governors=available)
    (found,) = frequency.read(put.root, [0, 4, 5])
    assert (found.id, found.cpus) == (0, {0, 1, 4, 5})
    assert (found.governor, found.governors) == ("schedutil", ("schedutil", "performance"))
    assert (found.preference, found.preferences) == ("", ())


def test_only_the_policies_of_these_cpus_are_read(put):
    for number in range(4):
        policy(put, number, str(number), scaling_governor="powersave")
    assert [found.id for found in frequency.read(put.root, [3, 1])] == [1, 3]


def test_energy_preferences_are_read_where_the_driver_has_them(put):
    policy(
        put, 2, "2", scaling_governor="powersave", energy_performance_preference="balance_power",
        energy_performance_available_preferences="default performance balance_power",
    )  # fmt: skip
    (found,) = frequency.read(put.root, [2])
    assert found.preference == "balance_power"
    assert found.preferences == ("default", "performance", "balance_power")


def test_old_kernels_have_the_files_with_the_cpu(put):
    policy(put, 1, "1", link=False, scaling_governor="ondemand")
    (found,) = frequency.read(put.root, [1])
    assert (found.id, found.governor) == (1, "ondemand")
    assert frequency.directory(put.root, 1) == f"{BASE}/cpu1/cpufreq"


@pytest.mark.parametrize("related", ["", "x y", "7"])
def test_a_damaged_policy_is_passed_over(put, related):
    policy(put, 1, "1", link=False)
    put("cpu1/cpufreq/related_cpus", related)
    assert frequency.read(put.root, [1]) == ()


def test_a_machine_without_frequencies_has_none(put):
    assert frequency.read(put.root, [0, 1]) == ()


def test_what_is_more_performant():
    governors = ["powersave", "conservative", "schedutil", "performance", "made-up"]
    assert sorted(governors, key=frequency.performance_of_governor) == [
        "performance", "schedutil", "conservative", "powersave", "made-up"]  # fmt: skip
    preferences = ["power", "64", "balance_power", "balance_performance", "performance", "200"]
    assert sorted(preferences, key=frequency.performance_of_preference) == [
        "performance", "64", "balance_performance", "balance_power", "200", "power"]  # fmt: skip
