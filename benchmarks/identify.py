"""A log of an hour at 1 kHz, and the way of a new user from a log to a drone file: seconds and memory.
Writes JSON rows that nbs/14_identify.ipynb takes by its parameter `measurements`. About three minutes.

    python benchmarks/identify.py runs/identify/measured.json"""
import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from raptor_nb.core.records import save_json
from raptor_nb.drones import load_drone
from raptor_nb.identify.readers import SD_NAMES, log_table
from raptor_nb.identify.synthetic import Flying, Sensors, fly_manoeuvres, measured

COMMAND = "import sys; from raptor_nb.cli import identify_command as c; sys.exit(c(sys.argv[1:]))"


def hour(log, seconds):
    "The flight again and again, with noise of its own: arrays of n rows at 1 kHz"
    random, n = np.random.default_rng(0), int(seconds * 1000)
    rows = np.arange(n) % len(log)
    noise = lambda k, size: size * random.standard_normal((n, k), np.float32)
    return (log.specific_force[rows] + noise(3, .1), log.angular_velocity[rows] + noise(3, .01),
            log.motors[rows])


def write_sd_card(path, force, turn, motors):
    "As the Crazyflie's firmware writes it, version 2"
    fields = [v for names in SD_NAMES.values() for v in names]
    head = struct.pack("<BHHH", 0xBC, 2, 1, 7) + b"fixed\0" + struct.pack("<H", 10)
    head += b"".join(f"{v}({'I' if 'motor' in v else 'f'})\0".encode() for v in fields)
    kind = np.dtype([("event", "<u2"), ("time", "<u8"), ("f", "<f4", 3), ("w", "<f4", 3), ("m", "<u4", 4)])
    rows = np.zeros(len(force), kind)
    rows["event"], rows["time"] = 7, 1000 * np.arange(len(force))
    rows["f"], rows["w"], rows["m"] = force / 9.81, np.degrees(turn), np.round(motors * 65535)
    with open(path, "wb") as file:
        file.write(head)
        file.write(rows.tobytes())
        file.write(b"crc ")


def command(folder, log, drone, *more):
    "The console command in a process of its own -> wall seconds, core-seconds, peak bytes, what it said"
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", COMMAND, log, "--mass", str(drone.mass), "--geometry",
                           str(folder / "frame.json"), "--output", str(folder / "mine/0000.json"), *more],
                          capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode: raise SystemExit(done.stderr)
    return dict(wall=time.monotonic() - began, core=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                peak=1024 * after.ru_maxrss, said=done.stdout + done.stderr)


def measure(folder, seconds):
    drone, how = load_drone("crazyflie"), Flying(seconds=58.)
    log = measured(fly_manoeuvres([drone], how), how=how, sensors=Sensors(lost=0., jitter=0.))
    (folder / "frame.json").write_text(json.dumps(
        {"rotor_positions": [list(p) for p in drone.dynamics.rotor_positions]}))
    log_table(log).to_csv(folder / "minute.csv", index=False, float_format="%.5g")
    rows, minute = [], command(folder, str(folder / "minute.csv"), drone)
    text = (f"raptor_identify on a CSV of {log.seconds:.0f} s, from its start to the drone file: "
            f"{minute['core']:.1f} core-seconds; peak {minute['peak'] / 1e6:.0f} MB")
    rows.append(dict(name="from a log of a minute to a drone file", value=minute["core"], unit="core-s", note=text))
    path = folder / "log00"
    write_sd_card(path, *hour(log, seconds))
    size = path.stat().st_size
    long = command(folder, str(path), drone)
    found = load_drone(folder / "mine/0000.json")
    off = abs(found.thrust_to_weight / drone.thrust_to_weight - 1)
    note = (f"{seconds:.0f} s at 1 kHz, {size / 1e6:.0f} MB; thrust-to-weight off by {off:.2%}; "
            f"progress: {long['said'].count('% read')} lines")
    rows.append(dict(name="log of an hour at 1 kHz", value=long["core"], unit="core-s", note=note))
    rows.append(dict(name="log of an hour at 1 kHz, peak memory", value=long["peak"] / 1e6, unit="MB", note=note))
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("output", help="JSON")
    p.add_argument("--seconds", type=float, default=3600.)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder: rows = measure(Path(folder), args.seconds)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    save_json(args.output, rows)
    for r in rows: print(f"{r['name']}: {r['value']:.3g} {r['unit']} ({r['note']})")


if __name__ == "__main__": main()
