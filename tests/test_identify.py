"A log of a flight becomes a drone: readers, identification, the drone file, the console command"
import json
import re
import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from raptor_nb import cli
from raptor_nb.drones import load_drone, parse_drone, scale_drone
from raptor_nb.identify import flight_log, readers
from raptor_nb.identify.drone_file import check_excited, drawn_drones, enough, identified_drone
from raptor_nb.identify.drag import drag_of
from raptor_nb.identify.estimate import Search, identify
from raptor_nb.identify.flight_log import FlightLog, LogError, check_units, resample_log, tidy
from raptor_nb.identify.flights_out import write_csv, write_mcap
from raptor_nb.identify.prediction import margins
from raptor_nb.identify.readers import SD_NAMES, kind_of, log_table, read_log
from raptor_nb.identify.spoiled import spoiled

N, RATE = 3000, 250.
TIME = np.arange(N) / RATE


@pytest.fixture(scope="module")
def motion():
    "Specific force in m/s^2, angular velocity in rad/s, motors 0..1: FLU, the policy's order"
    random = np.random.default_rng(0)
    force = np.array([0, 0, 9.81]) + random.normal(size=(N, 3)) * .3
    turn = random.normal(size=(N, 3)) * .5
    motors = .5 + .1 * np.sin(TIME[:, None] * [3, 4, 5, 6])
    return force, turn, motors


# --- files as flight controllers write them

def sd_card(force, turn, motors):
    fields = [v for names in SD_NAMES.values() for v in names]
    names = b"".join(f"{v}({'I' if 'motor' in v else 'f'})\0".encode() for v in fields)
    head = struct.pack("<BHHH", 0xBC, 2, 1, 7) + b"fixed\0" + struct.pack("<H", 10)
    rows = [struct.pack("<HQ6f4I", 7, round(t * 1e6), *(f / 9.81), *np.degrees(w),
                        *np.round(u * 65535).astype(int))
            for t, f, w, u in zip(TIME, force, turn, motors)]
    return head + names + b"".join(rows) + b"crc "


def ulog(force, turn, motors, rotors=4):
    "A ULog of version 1: three topics, one parameter"
    def message(kind, data): return struct.pack("<HB", len(data), ord(kind)) + data
    formats = {"vehicle_acceleration": "uint64_t timestamp;float[3] xyz;",
               "vehicle_angular_velocity": "uint64_t timestamp;float[3] xyz;",
               "actuator_motors": "uint64_t timestamp;float[12] control;"}
    out = [b"ULog\x01\x12\x35\x01" + struct.pack("<Q", 0), message("B", bytes(40))]
    out += [message("F", f"{k}:{v}".encode()) for k, v in formats.items()]
    name = b"int32_t CA_ROTOR_COUNT"
    out.append(message("P", bytes([len(name)]) + name + struct.pack("<i", rotors)))
    out += [message("A", struct.pack("<BH", 0, i) + k.encode()) for i, k in enumerate(formats)]
    flip, order = np.array([1, -1, -1]), np.argsort(readers.PX4_ORDER)
    for t, f, w, u in zip(TIME, force * flip, turn * flip, motors[:, order]):
        stamp = round(t * 1e6) + 1000
        u = [*u, *[np.nan] * 8]
        for i, values in enumerate((f, w, u)):
            out.append(message("D", struct.pack(f"<HQ{len(values)}f", i, stamp, *values)))
    return b"".join(out)


def blackbox(force, turn, motors):
    "A blackbox log of intra frames, all in signed variable bytes"
    names = ["loopIteration", "time", *(f"gyroADC[{i}]" for i in range(3)),
             *(f"accSmooth[{i}]" for i in range(3)), *(f"motor[{i}]" for i in range(4))]
    n = len(names)
    zeros, ones = ",".join("0" * n), ",".join("1" * n)
    head = ["Product:Blackbox flight data recorder by Nicholas Sherlock", "Data version:2",
            "I interval:1", "P interval:1/1", "Field I name:" + ",".join(names),
            "Field I signed:" + ones, "Field I predictor:" + zeros, "Field I encoding:" + zeros,
            "Field P predictor:" + zeros, "Field P encoding:" + zeros, "acc_1G:2048",
            "motorOutput:48,2047", "Firmware revision:Betaflight 4.5"]
    out = ["".join(f"H {line}\n" for line in head).encode()]
    order = np.argsort(readers.BETAFLIGHT_ORDER)
    for i, (t, f, w, u) in enumerate(zip(TIME, force, turn, motors[:, order])):
        values = [i, t * 1e6, *np.degrees(w), *(f / 9.81 * 2048), *(48 + 1999 * u)]
        out.append(b"I" + b"".join(variable_bytes(round(float(v))) for v in values))
    return b"".join(out) + b"E\xffEnd of log\0"


def variable_bytes(value):
    x, out = (value << 1) ^ (value >> 63), bytearray()
    while x > 127:
        out.append(x & 127 | 128)
        x >>= 7
    return bytes([*out, x])


WRITERS = {"log00": sd_card, "a.ulg": ulog, "b.bbl": blackbox}
TOLERANCE = {"log00": 1e-4, "a.ulg": 1e-4, "b.bbl": .01}   # the blackbox holds whole degrees


@pytest.mark.parametrize("name", WRITERS)
def test_every_reader_gives_the_same_table(name, motion, tmp_path):
    for package in ("pyulog", "orangebox"): pytest.importorskip(package)
    (tmp_path / name).write_bytes(WRITERS[name](*motion))
    log = read_log(tmp_path / name)
    assert abs(log.rate - RATE) < 1 and abs(log.seconds - TIME[-1]) < .01
    rows = slice(10, len(log) - 10)
    for value, wanted in zip((log.specific_force, log.angular_velocity, log.motors), motion):
        wanted = np.stack([np.interp(log.time, TIME, c) for c in wanted.T], 1)
        assert np.abs(value - wanted)[rows].max() < TOLERANCE[name] + .001
    check_units(log)


def test_px4s_estimate_comes_in_our_axes():
    "Nose to the east, flying east: forward in the body, and right of north in the world"
    from raptor_nb.identify.flight_log import body_velocity
    half = np.sqrt(.5)
    stamps = np.arange(3) * 10_000 + 1000
    row = lambda *values: {k: np.full(3, v) for k, v in values}
    topics = {"vehicle_attitude": row(("q[0]", half), ("q[1]", 0.), ("q[2]", 0.), ("q[3]", half)),
              "vehicle_local_position": row(("x", 1.), ("y", 2.), ("z", -3.), ("vx", 0.), ("vy", 4.), ("vz", 0.))}
    one = lambda name, data: SimpleNamespace(name=name, multi_id=0, data={"timestamp": stamps} | data)
    state = readers.px4_state(SimpleNamespace(data_list=[one(*i) for i in topics.items()]), np.array([.005, .015]))
    assert np.allclose(state["position"], [[1, -2, 3]] * 2)
    log = FlightLog(np.array([.005, .015]), *np.zeros((3, 2, 3)), extra=state)
    assert np.allclose(body_velocity(log), [[4, 0, 0]] * 2)


def test_a_csv_is_read_again(motion, tmp_path):
    log = tidy(TIME, dict(zip(("specific_force", "angular_velocity", "motors"), motion)))
    again = read_log(write_csv(tmp_path / "log.csv", log))
    assert np.allclose(again.specific_force, log.specific_force, atol=1e-5)
    table = log_table(log).rename(columns={"time": "t"})
    table.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(LogError, match="no column 'time'"): read_log(tmp_path / "other.csv")
    assert len(read_log(tmp_path / "other.csv", names={"t": "time"})) == N


def test_a_vehicle_of_six_rotors_is_refused(motion, tmp_path):
    pytest.importorskip("pyulog")
    (tmp_path / "six.ulg").write_bytes(ulog(*motion, rotors=6))
    with pytest.raises(LogError, match="6 rotors"): read_log(tmp_path / "six.ulg")


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_one_sentence_or_a_log(name, motion, tmp_path):
    "Truncated, and with bytes changed: never another exception"
    for package in ("pyulog", "orangebox"): pytest.importorskip(package)
    few = [x[:300] for x in motion]
    data, random, path = WRITERS[name](*few), np.random.default_rng(1), tmp_path / name
    for trial in range(25):
        bad = bytearray(data[:random.integers(len(data))] if trial % 2 else data)
        for _ in range(random.integers(1, 20)):
            if bad: bad[random.integers(len(bad))] = random.integers(256)
        path.write_bytes(bad)
        try: assert isinstance(read_log(path), FlightLog)
        except LogError as e: assert len(str(e)) < 500 and "\n" not in str(e)


@pytest.mark.parametrize("data, said", [
    pytest.param(b"", "is no log", id="empty"),
    pytest.param(bytes(100), "is no log", id="zeros"),
    pytest.param(b"\xbc\x09\0\x01\0", "version 9", id="version"),
    pytest.param(b"time,a\n1,2\n", "no column", id="columns"),
    pytest.param(b"ULog\x01\x12\x35\x01", "cannot be read", id="short ulog")])
def test_what_is_no_log_is_said(data, said, tmp_path):
    pytest.importorskip("pyulog")
    (tmp_path / "log").write_bytes(data)
    with pytest.raises(LogError, match=said): read_log(tmp_path / "log")


# --- rows

def test_rows_that_cannot_be_relied_on_are_counted(motion):
    force, turn, motors = (x.copy() for x in motion)
    time = TIME.copy()
    time[[100, 101]] = time[[101, 100]]
    time[200] = time[199]
    turn[300] = np.nan
    force[400:410, 2] = 156.
    log = tidy(time, dict(specific_force=force, angular_velocity=turn, motors=motors))
    assert (log.found["out_of_order"], log.found["doubled"]) == (1, 1)
    assert (log.found["not_a_number"], log.found["saturated_specific_force"]) == (1, 10)
    even, good = resample_log(log)
    assert 5 <= (~good).sum() <= 25 and np.isfinite(even.specific_force).all()


@pytest.mark.parametrize("change, said", [
    pytest.param(lambda f, w, u: (f / 9.81, w, u), "looks like g", id="g"),
    pytest.param(lambda f, w, u: (f, np.degrees(w), u), "looks like degrees", id="degrees"),
    pytest.param(lambda f, w, u: (f * [1, -1, -1], w, u), "-z axis", id="FRD"),
    pytest.param(lambda f, w, u: (f, w, u * 1000), "shares from 0 to 1", id="microseconds"),
    pytest.param(lambda f, w, u: (f, w, u * 0), "holds no flight", id="no flight")])
def test_wrong_units_are_named(change, said, motion):
    columns = dict(zip(("specific_force", "angular_velocity", "motors"), change(*motion)))
    with pytest.raises(LogError, match=said): check_units(tidy(TIME, columns))


# --- a flight whose drone is known

@pytest.fixture(scope="module")
def flight():
    "A drone with a centre of mass of its own, 39 s of flight in l2f, and what its log holds"
    pytest.importorskip("l2f")
    from raptor_nb.identify.synthetic import Flying, fly_manoeuvres, measured, uneven
    known = uneven(scale_drone(load_drone("x500"), thrust_to_weight=2.4),
                   np.random.default_rng(3))
    how = Flying(seconds=39.)
    truth = fly_manoeuvres([known.drone], how)
    log = measured(truth, how=how, imu=(*-known.centre, 0.), name="known")
    return known, log


QUICK = Search(samples=60, windows=48)


@pytest.fixture(scope="module")
def found(flight):
    known, log = flight
    return identify(log, known.drone.mass, known.geometry, QUICK)


def test_the_known_drone_is_found(flight, found):
    from raptor_nb.identify.synthetic import truth_of
    limits = dict(thrust_to_weight=.02, rising=.1, falling=.1, Jxx=.05, Jyy=.05, Jzz=.05,
                  torque_constant=.1)
    truth = truth_of(flight[0])
    for name, limit in limits.items():
        e = found.estimates[name]
        assert abs(e.value / truth[name] - 1) < limit, (name, truth[name], e)
        assert e.source == "flight" and e.low < e.value < e.high
    arm = flight[0].geometry.arm
    for name in ("centre_x", "centre_y"):
        assert abs(found.estimates[name].value - truth[name]) < .01 * arm
    assert enough(found).enough.all()


def test_a_long_log_is_taken_piece_by_piece(flight, found, monkeypatch):
    known, log = flight
    whole, good = resample_log(log)
    parts = list(flight_log.pieces(log, seconds=10.))
    assert len(parts) == round(log.seconds / 10)
    assert max(len(p) for p, _ in parts) < 1.2 * 10 * log.rate
    even = np.concatenate([p.time for p, _ in parts])
    assert (np.diff(even) > 0).all() and abs(len(even) - len(whole)) <= 2 * len(parts)
    part, _ = parts[2]
    near = np.interp(part.time, whole.time, whole.specific_force[:, 2])
    # other even times of the same noisy log
    off = np.abs(near - part.specific_force[:, 2])[50:-50]
    assert np.median(off) < .2 * whole.specific_force[:, 2].std()
    monkeypatch.setattr(flight_log.pieces, "__defaults__", (0., 10.))
    again = identify(log, known.drone.mass, known.geometry, Search(samples=40))
    assert len(again.windows) <= Search().windows
    now, then = again.estimates["thrust_to_weight"], found.estimates["thrust_to_weight"]
    assert now.value == pytest.approx(then.value, rel=.01) and now.source == "flight"


def test_the_drone_file_hovers_as_the_log_did(flight, found):
    drone = identified_drone(found, "mine")
    assert abs(drone.hover_throttle - flight[0].drone.hover_throttle) < .01
    assert abs(drone.hover_throttle - found.hover) < .05
    again = parse_drone(json.loads(drone.to_json()))
    assert again == drone and again.identified["Jzz"].source == "flight"
    some = drawn_drones(found, 4)
    assert len({d.thrust_to_weight for d in some}) > 1


def test_what_was_not_excited_is_a_prior(flight):
    "Hovering alone tells neither lag nor inertia"
    known, log = flight
    random = np.random.default_rng(0)
    n, hover = 20_000, known.drone.hover_throttle
    noise = lambda k, size: size * random.normal(size=(n, k)).astype(np.float32)
    calm = FlightLog(np.arange(n) / 1000, np.float32([0, 0, 9.81]) + noise(3, .3), noise(3, .02),
                     np.float32(hover) + noise(4, .01))
    found = identify(calm, known.drone.mass, known.geometry, QUICK)
    sources = {k: e.source for k, e in found.estimates.items()}
    assert all(sources[k] == "prior" for k in ("thrust_to_weight", "Jxx", "Jyy", "Jzz"))
    assert any("throttle punches" in note for note in found.notes)
    assert not enough(found).enough.any()
    if not any(v == "flight" for k, v in sources.items() if k in enough(found).index):
        with pytest.raises(LogError, match="hover throttle"): check_excited(found)
    assert abs(identified_drone(found).hover_throttle - hover) < .02


@pytest.mark.parametrize("change, said", [
    pytest.param(dict(motors=[1, 0, 2, 3]), "motors look swapped", id="motors"),
    pytest.param(dict(turn=[-1, 1, 1]), r"roll \(x\) has the wrong sign", id="roll"),
    pytest.param(dict(turn=[1, 1, -1]), r"yaw \(z\) has the wrong sign", id="yaw")])
def test_swapped_motors_and_axes_are_named(change, said, flight):
    known, log = flight
    if "motors" in change: log = replace(log, motors=log.motors[:, change["motors"]])
    else: log = replace(log, angular_velocity=log.angular_velocity * np.float32(change["turn"]))
    with pytest.raises(LogError, match=said): identify(log, known.drone.mass, known.geometry)


@pytest.mark.parametrize("done, said", [
    pytest.param("it only hovers", "hover throttle", id="hover"),
    pytest.param("commands of another flight", "does not follow its motor commands", id="other"),
    pytest.param("x and y of the gyroscope swapped", "x and y axes of the angular velocity", id="axes"),
    pytest.param("gyroscope 100 ms late", "the gyroscope of 'known' comes about 10", id="late"),
    pytest.param("accelerometer that ends at 16 m/s²", "at its end", id="saturated")])
def test_a_spoiled_log_is_named(done, said, flight):
    known, log = flight
    _, sentence = spoiled(log, done, known.drone.mass, known.geometry, QUICK)
    assert said in sentence


@pytest.mark.parametrize("share, filtered", [(.8, False), (.8, True), (.6, False)])
def test_a_saturated_accelerometer_leaves_the_interval_right(share, filtered, flight):
    "Its end at a share of the strongest reading, and a filter of 10 ms after its end"
    known, log = flight
    end, force = share * log.specific_force[:, 2].max(), log.specific_force.astype(float)
    force = np.clip(force, -end, end)
    if filtered:
        kernel = np.exp(-np.arange(100) * .1)
        kernel /= kernel.sum()
        force = np.stack([np.convolve(x, kernel)[:len(x)] for x in force.T], 1)
        force[:100] = log.specific_force[:100]
    columns = dict(specific_force=force, angular_velocity=log.angular_velocity, motors=log.motors)
    bad = tidy(log.time, columns, log.source)
    assert bad.found["saturated_specific_force"] > 50
    e = identify(bad, known.drone.mass, known.geometry, QUICK).estimates["thrust_to_weight"]
    assert e.source == "flight" and e.half_width < .04
    truth = known.drone.thrust_to_weight
    # what was clipped before the filter is only bounded
    if filtered: assert abs(e.value / truth - 1) < .02
    else: assert e.low < truth < e.high


@pytest.mark.parametrize("parts, said", [
    pytest.param(dict(specific_force=.1), "the accelerometer of 'known' comes", id="accelerometer"),
    pytest.param(dict(specific_force=.1, angular_velocity=.1),
                 "both sensors of 'known' come", id="both"),
    pytest.param(dict(specific_force=-.1, angular_velocity=-.1),
                 "the motor commands of 'known' come",
                 id="commands")])
def test_what_comes_late_is_named_and_can_be_shifted_back(parts, said, flight):
    known, log = flight
    late = flight_log.shifted(log, **{k: -s for k, s in parts.items()})
    with pytest.raises(LogError, match=said) as e:
        identify(late, known.drone.mass, known.geometry, QUICK)
    assert abs(int(re.search(r"about (\d+) ms later", str(e.value))[1]) - 100) <= 10
    back = flight_log.shifted(late, **parts)
    rows = slice(200, -200)
    assert np.abs(back.specific_force - log.specific_force)[rows, 2].mean() < .5


def test_a_small_shift_is_left_to_the_lag(flight):
    known, log = flight
    late = flight_log.shifted(log, angular_velocity=-.005)
    found = identify(late, known.drone.mass, known.geometry, QUICK)
    assert not any("later" in note or "earlier" in note for note in found.notes)


def test_drag_is_told_and_taken_off_the_thrust(flight):
    "Forces along x and y from a made-up drag are found; a log without velocities says nothing"
    known, log = flight
    random, n = np.random.default_rng(0), len(log)
    v = np.cumsum(random.normal(size=(n, 3)), 0) / np.sqrt(n) * 10
    state = dict(orientation=np.tile(np.float32([1, 0, 0, 0]), (n, 1)), linear_velocity=v.astype(np.float32))
    force = log.specific_force - np.float32([.3, .2, 0]) * state["linear_velocity"]
    told = drag_of([replace(log, specific_force=force, extra=state)], samples=40)
    assert np.allclose(told.samples[0], [.3, .2], atol=.03)
    assert drag_of([log]) is None


def test_margins_are_where_survival_falls():
    table = pd.DataFrame(dict(policy="student", kind=["delay"] * 3 + ["loss"] * 2, level=[0, .01, .02, 0, .1],
                              survival=[1, 1, .98, 1, 1], error=.1, **{"return": 600.}))
    found = margins(table).loc["student"]
    assert np.isclose(found.delay, .015) and not found.delay_or_more
    assert found.loss == .1 and found.loss_or_more


# --- the console command

@pytest.fixture
def files(flight, tmp_path):
    known, log = flight
    write_csv(tmp_path / "flight.csv", log)
    rotors = known.geometry.rotors.tolist()
    imu = dict(rotor_positions=rotors)
    (tmp_path / "frame.json").write_text(json.dumps(imu))
    return tmp_path


def run(files, *more, log="flight.csv", mass="2"):
    return cli.identify_command([str(files / log), "--mass", mass, "--geometry",
                                 str(files / "frame.json"), "--samples", "40",
                                 "--output", str(files / "mine/0000.json"), *more])


def test_each_of_many_logs_becomes_a_drone(files):
    assert run(files, "--each") == 0
    assert load_drone(files / "mine/flight.json").mass == 2


def test_the_command_writes_a_drone(flight, files, capsys):
    mass = flight[0].drone.mass
    assert run(files, "--check", mass=str(mass)) == 0
    assert "This flight is enough." in capsys.readouterr().out
    assert not (files / "mine").exists()
    assert run(files, mass=str(mass)) == 0
    said = capsys.readouterr()
    assert "hover throttle" in said.out and "0000.json" in said.out + said.err
    drone = load_drone(files / "mine/0000.json")
    assert abs(drone.thrust_to_weight / flight[0].drone.thrust_to_weight - 1) < .02
    manifest = json.loads((files / "mine/0000.json.manifest.json").read_text())
    assert manifest["metrics"]["source"][0]["file"] == "flight.csv"


@pytest.mark.parametrize("spoil, said", [
    pytest.param(lambda p: (p / "flight.csv").write_text("a,b\n1,2\n"), "no column", id="columns"),
    pytest.param(lambda p: (p / "frame.json").write_text("{}"), "rotor_positions", id="geometry"),
    pytest.param(lambda p: (p / "frame.json").write_text("["), "not valid JSON", id="json"),
    pytest.param(lambda p: (p / "flight.csv").unlink(), "no log", id="missing")])
def test_bad_input_is_one_sentence_and_writes_nothing(spoil, said, files, capsys):
    spoil(files)
    assert run(files) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (files / "mine").exists()


def test_a_flight_for_foxglove(flight, tmp_path):
    reader = pytest.importorskip("mcap.reader")
    log = flight[1].cut(5., 5.5)
    with open(write_mcap(tmp_path / "flight.mcap", log), "rb") as file:
        rows = [(c.topic, json.loads(m.data)) for _, c, m in
                reader.make_reader(file).iter_messages()]
    assert len(rows) == 3 * len(log)
    assert np.isclose(rows[-1][1]["front_left"], log.motors[-1, 3])


def test_kinds_are_told_by_their_first_bytes(motion, tmp_path):
    kinds = {"log00": "crazyflie", "a.ulg": "ulog", "b.bbl": "blackbox"}
    for name, kind in kinds.items():
        (tmp_path / "same").write_bytes(WRITERS[name](*(x[:9] for x in motion)))
        assert kind_of(tmp_path / "same") == kind
