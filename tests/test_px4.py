"PX4's archive: would the firmware take it, does it hold the weights, and what is refused"
import gzip
import hashlib
import io
import random
import re
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from px4_reader import PUBLISHED, PUBLISHED_ACTOR, PUBLISHED_NAME, build, fly, missing, read

import raptor_nb
from raptor_nb.core.records import WriteError, file_hash
from raptor_nb.policy import PolicyError, RaptorPolicy, load_policy, read_tar
from raptor_nb.targets import registry
from raptor_nb.targets.artefact import ExportError
from raptor_nb.targets.harness import guide_program
from raptor_nb.targets.px4 import archive_entries, checkpoint_name, px4_example, px4_start
from raptor_nb.targets.px4 import write_px4
from raptor_nb.targets.registry import DEFAULT, export, export_file, targets_for

SHIPPED = Path(raptor_nb.__file__).parent / "weights/student.px4.tar"
LIMIT = 1e-5   # of PX4's self-test


def random_policy(seed=1, **sizes):
    torch.manual_seed(seed)
    policy = RaptorPolicy(**sizes)
    with torch.no_grad():
        for w in policy.parameters(): w.normal_(std=.3)   # the initial hidden state as well
    return policy


POLICIES = {"shipped": RaptorPolicy.pretrained, "published": RaptorPolicy.published,
            "random": random_policy}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("px4")
    for name, make in POLICIES.items(): write_px4(make(), folder / f"{name}.px4.tar")
    return {name: folder / f"{name}.px4.tar" for name in POLICIES}


@pytest.fixture(scope="module")
def entries(archives): return read_tar(archives["shipped"])


def pack(path, entries, kind=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def array(entries, where): return np.frombuffer(entries[f"{where}/data"], "<f4").copy()


def changed(entries, where, change):
    "The same archive with other numbers in one tensor"
    values = array(entries, where)
    change(values)
    return entries | {f"{where}/data": values.tobytes()}


def shaped(entries, where, values):
    "The same archive with a tensor of another shape, and a text that says so"
    about = {"type": "tensor", "dtype": "float32", "num_dims": values.ndim}
    about |= {f"dim_{i}": n for i, n in enumerate(values.shape)}
    text = "".join(f"{k}: {v}\n" for k, v in about.items())
    return entries | {f"{where}/meta": text.encode(), f"{where}/data": values.tobytes()}


WEIGHTS = {where: f"actor/layers/{where}/parameters" for where in PUBLISHED}


# --- rl_tools' own reader

@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if missing(): pytest.skip(missing())
    return build(tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize("name", POLICIES)
def test_rl_tools_reads_it_and_answers_as_the_example(program, archives, name):
    found = read(program, archives[name])
    assert found.steps == 100
    assert 0 <= found.layers < LIMIT / 10 and 0 <= found.executor < LIMIT / 10
    assert found.whole < LIMIT / 10
    assert abs(found.layers - px4_start(archives[name]).difference) < 2e-7, "as emulated"


@pytest.mark.parametrize("where", WEIGHTS)
def test_a_tensor_that_is_off_by_a_hundredth_is_noticed_by_all(program, entries, tmp_path, where):
    def bend(values): values += .01
    path = pack(tmp_path / "p.tar", changed(entries, WEIGHTS[where], bend))
    assert read(program, path).layers > LIMIT
    with pytest.raises(ExportError, match="its self-test is off by"): px4_start(path)
    with pytest.raises(PolicyError, match="do not reproduce its example"): load_policy(path)


@pytest.mark.parametrize("cut", [2000, 9000, 20_000])
def test_rl_tools_refuses_what_is_cut_off(program, archives, tmp_path, cut):
    (tmp_path / "p.tar").write_bytes(archives["shipped"].read_bytes()[:cut])
    assert read(program, tmp_path / "p.tar") is None


def test_other_sizes_are_refused_by_rl_tools_as_well(program, entries, tmp_path):
    wide = np.zeros((48, 32), np.float32)
    path = pack(tmp_path / "p.tar", shaped(entries, WEIGHTS["1/weights_hidden"], wide))
    assert read(program, path) is None
    with pytest.raises(ExportError, match=r"is \(48, 32\); compiled into .* is \(48, 16\)"):
        px4_start(path)


def mixed(entries):
    order = list(entries)
    random.Random(0).shuffle(order)
    return {k: entries[k] for k in order} | {"notes.txt": b"of the pilot", "empty": b""}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT], ids=["ustar", "gnu"])
def test_any_order_and_more_entries_are_read_by_all(program, entries, tmp_path, kind):
    path = pack(tmp_path / "p.tar", mixed(entries), kind)
    assert read(program, path).layers < LIMIT / 10
    assert px4_start(path).entries == 28
    weights = RaptorPolicy.pretrained().state_dict()
    assert all(torch.equal(w, weights[k]) for k, w in load_policy(path).state_dict().items())


# --- what is in it

def test_the_published_policy_keeps_its_weights(archives, tmp_path):
    "Each tensor, and with the published name all that PX4 reads of the actor, byte for byte"
    found = read_tar(archives["published"])
    digests = {where: hashlib.sha256(found[f"{entry}/data"]).hexdigest()
               for where, entry in WEIGHTS.items()}
    assert digests == PUBLISHED
    policy = RaptorPolicy.published()
    found = read_tar(policy.to_tar(tmp_path / "p.tar", *px4_example(policy), PUBLISHED_NAME))
    actor = sorted(k for k in found if k.startswith("actor/"))
    joined = b"".join(k.encode() + b"\0" + found[k] for k in actor)
    assert len(actor) == 22 and hashlib.sha256(joined).hexdigest() == PUBLISHED_ACTOR


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_read_back_is_what_was_written(archives, name):
    ours, back = POLICIES[name]().state_dict(), load_policy(archives[name]).state_dict()
    assert ours.keys() == back.keys() and all(torch.equal(w, back[k]) for k, w in ours.items())


def test_the_start_on_the_desk(archives):
    for path in archives.values():
        start = px4_start(path)
        assert start.entries == 26 and start.bytes == path.stat().st_size < 100_000
        assert start.difference < LIMIT / 10 and start.checkpoint == "raptor_nb in memory"


def test_the_example_is_flights_that_ask_something_of_the_policy():
    given, action = px4_example(RaptorPolicy.pretrained())
    assert given.shape == (100, 2, 22) and action.shape == (100, 2, 4)
    first = given[:5]
    assert np.linalg.norm(first[..., :3], axis=2).min() > .05, "away from the target, m"
    assert np.abs(first[..., 15:18]).max() > .1, "turning, rad/s"
    assert np.abs(given[:, 0] - given[:, 1]).max() > .1, "two flights, not one"
    assert action[:5].std(0).max() > .02 and np.abs(action).max() <= 3


def test_equal_students_give_equal_bytes(archives, tmp_path):
    write_px4(RaptorPolicy.pretrained(), tmp_path / "p.tar")
    assert (tmp_path / "p.tar").read_bytes() == archives["shipped"].read_bytes()


def test_it_says_which_file_it_is_of(tmp_path):
    source = tmp_path / "stu dént\n.safetensors"
    RaptorPolicy.pretrained().save(source)
    write_px4(RaptorPolicy.pretrained(), tmp_path / "p.tar", source)
    said = f"raptor_nb stu d?nt.safetensors {file_hash(source)[:12]}"
    assert px4_start(tmp_path / "p.tar").checkpoint == said
    assert len(checkpoint_name("x" * 200)) <= 99


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no student.px4.tar is shipped")
def test_the_shipped_archive_is_the_shipped_student():
    student = SHIPPED.with_name("student.safetensors")
    of = f"raptor_nb student.safetensors {file_hash(student)[:12]}"
    assert px4_start(SHIPPED).checkpoint == of, "of another student: make export-report"


def test_the_walk_finds_what_tarfile_finds(archives):
    for path in archives.values():
        data = path.read_bytes()
        found = {k: data[at:at + n] for k, (at, n) in archive_entries(data).items()}
        assert found == read_tar(path)


def test_the_first_entry_of_a_name_counts(entries, tmp_path):
    "PX4 takes the first it finds, so we do"
    path = pack(tmp_path / "p.tar", entries)
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(f"{WEIGHTS['2/biases']}/data")
        info.size = 16
        archive.addfile(info, io.BytesIO(bytes(16)))
    assert px4_start(path).difference < LIMIT
    assert torch.equal(load_policy(path).output_layer.linear.bias,
                       RaptorPolicy.pretrained().output_layer.linear.bias)


# --- sizes

@pytest.mark.parametrize("sizes", [dict(hidden_dim=32), dict(obs_dim=26)], ids=["hidden", "seen"])
def test_other_sizes_are_left_out_or_refused(tmp_path, monkeypatch, sizes):
    "A run that writes the usual files goes on without it; who asks for it is told why not"
    policy, written = random_policy(**sizes), []
    monkeypatch.setattr(registry, "_export_one", lambda policy, target, *_: written.append(target))
    usual = DEFAULT.split(",")
    for names in (DEFAULT, usual, "all", [*usual, "tflite"]): export(policy, tmp_path, names)
    names = {t.name for t in written}
    assert {*usual, "tflite"} - {"px4"} <= names and "px4" not in names
    assert "px4" in targets_for(RaptorPolicy()) and targets_for(policy, "px4") == ["px4"]
    monkeypatch.undo()
    sentence = r"cannot fly this policy: it has \(.*\) observed, .* are \(22, 16, 4\)"
    with pytest.raises(ExportError, match=sentence): export(policy, tmp_path, "px4")
    assert not (tmp_path / "student.px4.tar").exists()
    with pytest.raises(PolicyError, match=r"compiled for \(22, 16, 4\)"):
        policy.to_tar(tmp_path / "p.tar", np.zeros((5, 2, 22)))


# --- bad archives

def nan(values): values[2] = np.nan
def infinite(values): values[0] = np.inf
def without(entries, name): return {k: v for k, v in entries.items() if k != name}


def example_of(entries, steps=100, flights=2):
    given = array(entries, "example/input").reshape(100, 2, 22)[:steps, :flights]
    action = array(entries, "example/output").reshape(100, 2, 4)[:steps, :flights]
    out = shaped(entries, "example/input", np.ascontiguousarray(given))
    return shaped(out, "example/output", np.ascontiguousarray(action))


def hidden_32(entries):
    out = shaped(entries, WEIGHTS["0/weights"], np.zeros((32, 22), np.float32))
    return shaped(out, WEIGHTS["2/weights"], np.zeros((4, 32), np.float32))


def transposed(entries):
    values = array(entries, WEIGHTS["1/weights_input"]).reshape(48, 16)
    return shaped(entries, WEIGHTS["1/weights_input"], np.ascontiguousarray(values.T))


def shorter(entries):
    name = f"{WEIGHTS['1/biases_input']}/data"
    return entries | {name: entries[name][:-4]}


def double(entries):
    name = f"{WEIGHTS['1/biases_input']}/meta"
    return entries | {name: entries[name].replace(b"float32", b"float64")}


def odd(entries): return entries | {f"{WEIGHTS['0/biases']}/meta": b"num_dims: many\n\xff"}


def tanh(entries):
    return entries | {"actor/layers/0/meta": b"activation_function: TANH\ntype: dense\n"}


def prefixed(entries): return {f"./{k}": v for k, v in entries.items()}
def nameless(entries): return entries | {"actor/meta": b"type: sequential\n"}
def long_text(entries): return entries | {"actor/meta": entries["actor/meta"] + b"x" * 250}


def long_tensor_text(entries):
    name = f"{WEIGHTS['2/biases']}/meta"
    return entries | {name: entries[name] + b"y" * 60}


HIDDEN_STATE = f"{WEIGHTS['1/initial_hidden_state']}/data"
NO_EXAMPLE = "example/input/meta"
# change of a good archive; what load_policy says; what PX4 would: empty, it takes it
CHANGES = {
    "hidden-size": (hidden_32, r"has \(22, 32, 4\) observed, .*compiled for \(22, 16, 4\)",
                    r"0/weights/parameters is \(32, 22\)"),
    "transposed": (transposed, r"weight_ih_l0 has shape \(16, 48\); it must be \(48, 16\)",
                   r"is \(16, 48\); compiled into the module is \(48, 16\)"),
    "nan": (lambda e: changed(e, WEIGHTS["1/weights_hidden"], nan),
            "weights_hidden/parameters holds NaN", "self-test is off by nan"),
    "infinite": (lambda e: changed(e, WEIGHTS["2/biases"], infinite),
                 "2/biases/parameters holds NaN or infinite", "self-test is off by inf"),
    "nan-example": (lambda e: changed(e, "example/input", nan), "example/input holds NaN",
                    "self-test is off by nan"),
    "three-bytes-missing": (shorter, "has 188 bytes; it must be a float32 tensor, and whole",
                            "has 188 bytes, not 192"),
    "double": (double, "must be a float32 tensor", ""),
    "odd-text": (odd, "must be a float32 tensor", r"has no type"),
    "no-hidden-state": (lambda e: without(e, HIDDEN_STATE),
                        "initial_hidden_state/parameters/data is missing; it must be an archive",
                        "initial_hidden_state/parameters/data is missing"),
    "activation": (tanh, "layer 0 is .*TANH.*it must be .*RELU", ""),
    "no-example": (lambda e: without(without(e, NO_EXAMPLE), "example/input/data"),
                   "example/input/meta is missing", "example/input/data is missing"),
    "four-steps": (lambda e: example_of(e, steps=4), r"shape \(4, 2, 22\) and actions of shape "
                   r"\(4, 2, 4\); they must be .*5 steps or more", "is shorter than 5 steps"),
    "one-flight": (lambda e: example_of(e, flights=1), r"\(100, 1, 22\)", "self-test is off by"),
    "names-with-a-dot": (prefixed, "actor/layers/0/meta is missing", "0/weights/.* is missing"),
    "no-name": (nameless, "", "actor/meta has no checkpoint_name"),
    "long-text": (long_text, "", "actor/meta has .* bytes; its buffer holds 256"),
    "long-text-of-a-tensor": (long_tensor_text, "", "bytes; its buffer holds 99"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_bad_archives(entries, tmp_path, name):
    change, ours, firmware = CHANGES[name]
    path = pack(tmp_path / "p.px4.tar", change(entries))
    for read_it, kind, message in ((load_policy, PolicyError, ours),
                                   (px4_start, ExportError, firmware)):
        if not message:
            assert read_it(path) is not None
            continue
        with pytest.raises(kind, match=message) as caught: read_it(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


FOREIGN = {"empty": b"", "text": b"weights: 2084\n" * 100, "zeros": bytes(2048),
           "zip": b"PK\x03\x04" + bytes(600), "short": b"actor/meta"}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files(tmp_path, name):
    path = tmp_path / "p.px4.tar"
    path.write_bytes(FOREIGN[name])
    sentence = "is not a readable tar archive|actor/layers/0/meta is missing"
    with pytest.raises(PolicyError, match=sentence) as caught: load_policy(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="PX4 would not start with '.*p.px4.tar': "):
        px4_start(path)


def test_a_compressed_archive_is_refused(archives, tmp_path):
    (tmp_path / "p.tar").write_bytes(gzip.compress(archives["shipped"].read_bytes()))
    with pytest.raises(PolicyError, match="not a readable tar"): load_policy(tmp_path / "p.tar")
    with pytest.raises(ExportError, match="at byte 0 there is no header"):
        px4_start(tmp_path / "p.tar")


def test_cut_off_anywhere_it_is_refused(archives, tmp_path):
    data, path = archives["shipped"].read_bytes(), tmp_path / "p.px4.tar"
    end = max(at + size for at, size in archive_entries(data).values())
    for cut in [*range(0, end, 1777), end - 1]:
        path.write_bytes(data[:cut])
        with pytest.raises(PolicyError): load_policy(path)
        with pytest.raises(ExportError, match="would not start"): px4_start(path)
    path.write_bytes(data[:end])   # the blocks of zeros at the end are not needed
    assert px4_start(path).difference < LIMIT


def test_a_size_that_is_a_lie(entries, tmp_path):
    path = pack(tmp_path / "p.tar", entries)
    data = bytearray(path.read_bytes())
    data[124:136] = b"77777777777\0"   # 8 GB
    path.write_bytes(data)
    with pytest.raises(PolicyError, match="not a readable tar archive"): load_policy(path)
    with pytest.raises(ExportError, match="is missing"): px4_start(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no student"):
        load_policy(tmp_path / "p.px4.tar")
    with pytest.raises(FileNotFoundError, match="there is no archive .*p.px4.tar"):
        RaptorPolicy.from_tar(tmp_path / "p.px4.tar")
    with pytest.raises(FileNotFoundError, match="there is no PX4 file"):
        px4_start(tmp_path / "p.px4.tar")


def restless(factor):
    "Rounding decides the actions of it at once: the larger, the more"
    policy = random_policy()
    with torch.no_grad():
        for w in policy.parameters(): w *= factor
    return policy


# --- writing

def test_a_policy_that_rounding_flies_is_refused_before_px4_would(tmp_path):
    sentence = r"PX4's self-test would fail with this policy: rounding changes its actions " \
               r"by .* in 5 steps; PX4 allows 1e-05"
    with pytest.raises(ExportError, match=sentence): write_px4(restless(1e4), tmp_path / "p.tar")
    write_px4(restless(3), tmp_path / "p.tar")
    assert px4_start(tmp_path / "p.tar").difference < LIMIT / 2

@pytest.mark.parametrize("name", ["", "two\nlines", "dé", "x" * 100],
                         ids=["empty", "lines", "ascii", "long"])
def test_bad_names(tmp_path, name):
    policy = RaptorPolicy.published()
    with pytest.raises(PolicyError, match="it must be one line of ASCII, 1 to 99 characters"):
        policy.to_tar(tmp_path / "p.tar", *px4_example(policy), name)
    assert not list(tmp_path.iterdir())


def flat(given): return given[:, 0]
def short(given): return given[:4]
def blind(given): return given[..., :21]
def unfinished(given): return np.where(given == given[3, 1, 2], np.nan, given)


@pytest.mark.parametrize("change, message", [
    (flat, "must be"), (short, r"5 steps or more"), (blind, "must be .*22"),
    (unfinished, "the example holds nan")], ids=["flat", "short", "blind", "nan"])
def test_bad_examples(tmp_path, change, message):
    policy = RaptorPolicy.published()
    given, action = px4_example(policy)
    path = tmp_path / "p.tar"
    with pytest.raises(PolicyError, match=message): policy.to_tar(path, change(given))
    sentence = "do not reproduce its example"
    with pytest.raises(PolicyError, match=sentence): policy.to_tar(path, given, action + 1e-4)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("x")
    sentence = "cannot write '.*student.px4.tar'"
    with pytest.raises(WriteError, match=sentence):
        export_file(RaptorPolicy.pretrained(), "px4", tmp_path / "file/student.px4.tar")
    with pytest.raises(WriteError, match=sentence):
        policy = RaptorPolicy.published()
        policy.to_tar("/dev/null/student.px4.tar", *px4_example(policy))


def test_weights_that_are_not_finite(tmp_path):
    policy = random_policy()
    with torch.no_grad(): policy.output_layer.linear.bias[1] = float("inf")
    with pytest.raises(PolicyError, match="output_layer.linear.bias holds inf"):
        policy.to_tar(tmp_path / "p.tar", np.zeros((5, 2, 22)), np.zeros((5, 2, 4)))
    with pytest.raises(ExportError, match="values that are not finite"):
        export_file(policy, "px4", tmp_path / "p.tar")


# --- the guide

def module(page, name): # a Python program of a guide, imported
    made = types.ModuleType(name)
    exec(compile(guide_program(page, name), name, "exec"), vars(made))
    return made


@pytest.fixture(scope="module")
def replay(): return module("px4", "replay.py")


def test_the_desk_says_what_the_drone_has_to_say(archives):
    said = module("px4", "desk.py").desk(archives["shipped"])
    assert said.startswith("raptor_nb in memory: 26 entries, self-test ") and "e-0" in said


def test_what_is_to_be_logged():
    lines = guide_program("px4", "logger_topics.txt").splitlines()
    topics = dict(line.split() for line in lines)
    assert {"raptor_status", "raptor_input", "actuator_motors"} <= topics.keys()
    assert set(topics.values()) == {"0"}


def test_both_guides_have_the_same_motors_and_frames(replay):
    frames, q = module("flight_stacks", "frames.py"), np.array([.5, -.5, .1, .7])
    assert replay.MOTORS == frames.PX4
    assert np.array_equal(replay.matrix(q), frames.matrix(q))


OFF, FIRST, PAUSE, SECOND = 30, 203, 17, 110   # calls at 400 Hz


@pytest.fixture(scope="module")
def log(program, archives):
    "Of two flights by rl_tools' loop around the shipped archive; what the motors were commanded"
    random, calls = np.random.default_rng(3), OFF + FIRST + PAUSE + SECOND
    limits = np.repeat([.5, 1, 1, 4], [3, 4, 3, 3])
    seen = (random.uniform(-1, 1, (calls, 13)) * limits).astype(np.float32)
    seen[:, 3:7] /= np.linalg.norm(seen[:, 3:7], axis=1, keepdims=True)
    active, previous = np.zeros(calls, bool), np.zeros((calls, 4), np.float32)
    motors = np.full((calls, 4), np.nan)
    for start, n in ((OFF, FIRST), (OFF + FIRST + PAUSE, SECOND)):
        flight = slice(start, start + n)
        action = fly(program, archives["shipped"], seen[flight])
        active[flight], previous[start + 1:start + n] = True, action[:-1]
        motors[flight] = (action[:, [0, 2, 3, 1]] + 1) / 2
    names = "position", "orientation", "linear_velocity", "angular_velocity"
    parts = dict(zip(names, np.split(seen, [3, 7, 10], 1)))
    return parts | {"active": active, "previous_action": previous}, motors


def test_the_replay_commands_what_rl_tools_loop_commands(replay, log, archives):
    log, motors = log
    ours = replay.commands(load_policy(archives["shipped"]), log)
    assert np.array_equal(np.isnan(ours), np.isnan(motors))
    assert np.nanmax(np.abs(ours - motors)) < 1e-5
    assert np.nanstd(motors, 0).min() > .05, "commands that differ from each other"


class LogFile:
    "Stands in for pyulog: the two topics, some messages of actuator_motors lost"
    def __init__(self, path, topics):
        log, motors = path
        assert topics == ["raptor_input", "actuator_motors"]
        at = 1_000_000 + 2500 * np.arange(len(motors))
        columns = lambda name, x: {f"{name}[{i}]": x[:, i] for i in range(x.shape[1])}
        seen = {"timestamp_sample": at, "active": log["active"].astype(np.uint8)}
        for name in log.keys() - {"active"}: seen |= columns(name, log[name])
        kept = np.arange(len(at)) % 7 != 3
        written = columns("control", motors[kept]) | {"timestamp_sample": at[kept]}
        both = {"raptor_input": seen, "actuator_motors": written}
        self.data_list = [types.SimpleNamespace(name=k, data=v) for k, v in both.items()]


def test_a_log_says_whether_it_was_this_policy(replay, log, archives, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyulog", types.SimpleNamespace(ULog=LogFile))
    said = replay.compare(archives["shipped"], log)
    assert "269 calls" in said and "100.0 % within 0.001" in said
    for other in (replay.compare(archives["published"], log),
                  replay.compare(archives["shipped"], log, rate=200)):
        assert float(re.search(r"([\d.]+) % within", other)[1]) < 60
    off = log[0] | {"active": np.zeros_like(log[0]["active"])}
    assert "the mode was never on" in replay.compare(archives["shipped"], (off, log[1]))
