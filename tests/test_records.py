"core.records: nothing is lost by a kill, a restart or a full disk; bad files are named"
import os, pickle, random, signal, subprocess, sys, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from raptor_nb.core.records import Checkpoints, RecordError, RowFile, WriteError, atomic
from raptor_nb.core.records import file_hash, finished, load_info, load_json, load_state
from raptor_nb.core.records import load_table, load_tensors, manifest_path, plain, run_lock
from raptor_nb.core.records import save_json, save_state, save_table, save_tensors
from raptor_nb.core.records import write_manifest

WEIGHTS = {"w": torch.arange(6.).reshape(2, 3), "b": torch.ones(2)}


def python(code, *args):
    "A program of its own, started"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- files that cannot be used

def other_tensors(**changes): return lambda path: save_tensors(path, WEIGHTS | changes)
def cut(change): return lambda path: path.write_bytes(change(path.read_bytes()))
def content(data): return lambda path: path.write_bytes(data)


def absent(path): path.unlink()
def folder(path):
    path.unlink()
    path.mkdir()


WRONG = [
    pytest.param(cut(lambda b: b[:-4]), r"weights.safetensors' is truncated or damaged; write it",
                 id="weights-truncated"),
    pytest.param(cut(lambda b: b[:40]), "is truncated or damaged", id="weights-cut-in-header"),
    pytest.param(cut(lambda b: b[:3]), "is truncated or damaged", id="weights-three-bytes"),
    pytest.param(cut(lambda b: b + b"0000"), "is truncated or damaged", id="weights-with-a-tail"),
    pytest.param(content(b""), "is empty; it must be a safetensors file", id="weights-empty"),
    pytest.param(content(pickle.dumps([1, 2, 3]*10)), r"is a pickle \(it is not read\); it must be",
                 id="weights-raw-pickle"),
    pytest.param(lambda p: torch.save(WEIGHTS, p),
                 r"is a zip archive, as torch.save writes \(pickled, so it is not read\)",
                 id="weights-pickled"),
    pytest.param(content(b"\x89HDF\r\n\x1a\n" + bytes(100)),
                 "is an HDF5 file; it must be a safetensors file", id="weights-hdf5"),
    pytest.param(content(b'{"w": [1, 2, 3, 4, 5, 6, 7, 8, 9]}'),
                 "is JSON text; it must be a safetensors file", id="weights-json"),
    pytest.param(content(b"weights of the student, second try"),
                 "weights.safetensors' is not a safetensors file", id="weights-text"),
    pytest.param(other_tensors(b=torch.tensor([1., np.nan])),
                 "'b' holds 1 values that are not finite", id="weights-nan"),
    pytest.param(other_tensors(b=torch.tensor([-np.inf, np.inf])),
                 "'b' holds 2 values that are not finite", id="weights-infinite"),
    pytest.param(other_tensors(w=torch.ones(3, 2)),
                 r"'w' has shape \(3, 2\); it must be \(2, 3\)", id="weights-wrong-shape"),
    pytest.param(lambda p: save_tensors(p, {"b": torch.ones(2)}),
                 r"has no 'w' \(shape \(2, 3\)\); it holds b", id="weights-name-missing"),
    pytest.param(other_tensors(c=torch.ones(1)),
                 "holds 'c', which does not belong; expected: w, b", id="weights-name-too-many"),
]


@pytest.mark.parametrize("spoil, sentence", WRONG)
def test_bad_tensors(tmp_path, spoil, sentence):
    path = save_tensors(tmp_path / "weights.safetensors", WEIGHTS)
    spoil(path)
    with pytest.raises(RecordError, match=sentence): load_tensors(path, like=WEIGHTS)


@pytest.mark.parametrize("spoil, sentence", [
    pytest.param(absent, r"^no file '.*weights.safetensors'$", id="weights-absent"),
    pytest.param(folder, "it is a folder", id="weights-are-a-folder"),
])
def test_missing_tensors(tmp_path, spoil, sentence):
    path = save_tensors(tmp_path / "weights.safetensors", WEIGHTS)
    spoil(path)
    with pytest.raises(FileNotFoundError, match=sentence): load_tensors(path)


def test_truncated_at_any_length_is_truncated(tmp_path):
    "A header's length can begin with any byte, that of a pickle or of other formats too"
    for count in (1, 8, 9, 10, 30):
        tensors = {f"{i:02d}": torch.ones(1) for i in range(count)}
        path = save_tensors(tmp_path / "w.safetensors", tensors)
        whole = path.read_bytes()
        for size in (1, 7, 8, 9, 40, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(RecordError, match="is truncated or damaged"): load_tensors(path)


def test_nan_can_be_asked_for(tmp_path):
    path = save_tensors(tmp_path / "w.safetensors", {"b": torch.tensor([1., np.nan])})
    tensors, _ = load_tensors(path, finite=False)
    assert torch.isnan(tensors["b"]).tolist() == [False, True]


@pytest.mark.parametrize("load, name, data, sentence", [
    pytest.param(load_json, "x.json", b'{"a": [1, 2',
                 r"x.json' is not valid JSON \(line 1\).*it may be truncated", id="json-truncated"),
    pytest.param(load_json, "x.json", b"\xff\xfe\x00\x01", "x.json' is not a text file",
                 id="json-binary"),
    pytest.param(load_table, "x.parquet", b"PAR1xxxx", "x.parquet' is not a parquet table",
                 id="parquet-truncated"),
    pytest.param(load_table, "x.csv", b"", "x.csv' is not a csv table: no columns",
                 id="csv-empty"),
])
def test_bad_content(tmp_path, load, name, data, sentence):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RecordError, match=sentence): load(tmp_path / name)


@pytest.mark.parametrize("load", [load_state, load_info])
def test_bad_checkpoint_is_plain_weights(tmp_path, load):
    path = save_tensors(tmp_path / "x.safetensors", WEIGHTS)
    with pytest.raises(RecordError, match="holds tensors but no checkpoint"): load(path)


@pytest.mark.parametrize("load, name, sentence", [
    pytest.param(load_json, "x.json", "no file '.*x.json'", id="json-absent"),
    pytest.param(load_table, "x.csv", "no table '.*x.csv'", id="table-absent"),
])
def test_missing_file(tmp_path, load, name, sentence):
    with pytest.raises(FileNotFoundError, match=sentence): load(tmp_path / name)


@pytest.mark.parametrize("write, sentence", [
    pytest.param(lambda d: save_json(d / "x.json", {"f": print}),
                 "cannot write a builtin_function_or_method as JSON", id="json-of-a-function"),
    pytest.param(lambda d: save_tensors(d / "x.safetensors", {"w": [1., 2.]}),
                 "cannot store 'w' .*it is a list; it must be a tensor", id="weights-of-a-list"),
    pytest.param(lambda d: save_state(d / "x.safetensors", {"a": [1, {"net": torch.nn.ReLU()}]}),
                 r"cannot store state\['a'\]\[1\]\['net'\]: a ReLU", id="checkpoint-of-a-module"),
    pytest.param(lambda d: save_state(d / "x.safetensors", {"a": np.array(["x"])}),
                 r"cannot store state\['a'\]: an array of <U1", id="checkpoint-of-words"),
    pytest.param(lambda d: save_table(d / "x.xlsx", pd.DataFrame()),
                 "the suffix is '.xlsx'; it must be .csv or .parquet", id="table-suffix"),
    pytest.param(lambda d: Checkpoints(d, keep=0), "keep is 0; at least 1", id="keep-nothing"),
])
def test_bad_value(tmp_path, write, sentence):
    with pytest.raises(RecordError, match=sentence): write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [
    pytest.param(lambda p: save_json(p / "x.json", 1), id="output-json-under-a-file"),
    pytest.param(lambda p: save_tensors(p / "x.safetensors", WEIGHTS),
                 id="output-weights-under-a-file"),
    pytest.param(lambda p: Checkpoints(p / "run").save(1, {}), id="output-checkpoint-under-a-file"),
    pytest.param(lambda p: run_lock(p / "run").__enter__(), id="output-folder-is-a-file"),
])
def test_unwritable_output(tmp_path, write):
    (tmp_path / "file").write_text("mine")
    sentence = r"^cannot write .*file.*: (not a directory|file exists); "
    with pytest.raises(WriteError, match=sentence): write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_device_is_not_replaced():
    sentence = "cannot write '/dev/full': it is there already and not a file"
    with pytest.raises(WriteError, match=sentence): save_json("/dev/full", 1)


FULL_DISK = """
import resource, signal, sys
from raptor_nb.core import records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
path, many = sys.argv[1], records.np.random.rand(100_000)
try: %s
except records.WriteError as e: print(e)
"""


@pytest.mark.parametrize("name, write", [
    pytest.param("w.safetensors", 'records.save_tensors(path, {"w": records.torch.tensor(many)})',
                 id="disk-full-weights"),
    pytest.param("w.json", "records.save_json(path, many)", id="disk-full-json"),
    pytest.param("w.parquet", 'records.save_table(path, records.pd.DataFrame({"a": many}))',
                 id="disk-full-parquet"),
])
def test_full_disk_keeps_the_old_file(tmp_path, name, write):
    "A process that may not write more than 10 kB a file stands for a full disk"
    path = tmp_path / name
    path.write_text("old")
    out, err = python(FULL_DISK % write, path).communicate(timeout=60)
    assert f"cannot write '{path}': file too large; nothing was overwritten" in out, out + err
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == [name]


def test_no_space_left_is_said(tmp_path):
    with pytest.raises(WriteError, match="no space left on device; nothing was overwritten"):
        with atomic(tmp_path / "x") as tmp:
            tmp.unlink()
            tmp.symlink_to("/dev/full")
            tmp.write_text("much")
    assert list(tmp_path.iterdir()) == []


# --- whole or absent

HALF = """
import sys, time
from raptor_nb.core.records import atomic
with atomic(sys.argv[1]) as tmp, tmp.open('w') as f:
    f.write('half'); f.flush(); print('writing', flush=True); time.sleep(60)
"""


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = save_json(tmp_path / "x.json", "old")
    process = python(HALF, path)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert load_json(path) == "old" and len(list(tmp_path.iterdir())) == 2
    with run_lock(tmp_path): pass  # whoever owns the folder next sweeps it
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "x.json"]


def test_an_error_in_the_middle_leaves_the_old_file_and_is_passed_on(tmp_path):
    path = save_json(tmp_path / "x.json", "old")
    with pytest.raises(ZeroDivisionError):
        with atomic(path) as tmp: tmp.write_text("new"), 1/0
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        with atomic(path): open(tmp_path / "elsewhere")
    assert load_json(path) == "old" and [p.name for p in tmp_path.iterdir()] == ["x.json"]


# --- there and back

BASE = torch.arange(12.).reshape(3, 4)
TENSORS = {
    "shared": BASE, "view": BASE[:, 1], "transposed": BASE.T, "again": BASE,
    "empty": torch.zeros(0, 3), "scalar": torch.tensor(3),
    "half": torch.ones(2, dtype=torch.bfloat16), "grad": torch.ones(2, requires_grad=True),
}


def test_tensors_round_trip(tmp_path):
    path = save_tensors(tmp_path / "a/b.safetensors", TENSORS, {"ids": "1,2", "n": 3})
    back, meta = load_tensors(path)
    assert meta == {"ids": "1,2", "n": "3"} and set(back) == set(TENSORS)
    for name, t in TENSORS.items():
        assert torch.equal(back[name], t) and back[name].dtype == t.dtype, name


def test_json_round_trip(tmp_path):
    value = {"a": 1/3, "b": [True, None, "ü"]}
    assert load_json(save_json(tmp_path / "x.json", value)) == value


def test_what_json_does_not_know():
    assert plain({1: np.inf, "t": torch.ones(2), "p": Path("a/b"), "n": np.int64(3)}) == {
        "1": None, "t": [1., 1.], "p": "a/b", "n": 3}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_round_trip(tmp_path, suffix):
    table = pd.DataFrame({"drone": [3, 4], "return": [650.1, 1/3], "name": ["a", "b"]})
    back = load_table(save_table(tmp_path / f"t.{suffix}", table))
    pd.testing.assert_frame_equal(back, table)


# --- manifests

@pytest.fixture
def artefact(tmp_path):
    "A file with its manifest, and what it was made from"
    drones, teachers = save_json(tmp_path / "drones.json", [1]), tmp_path / "teachers"
    save_json(teachers / "0000.json", 0)
    made = dict(settings={"gamma": .99}, inputs=[drones, teachers])
    path = save_json(tmp_path / "student.json", "weights")
    metrics = {"return": np.float32(640), "x": float("nan")}
    write_manifest(path, **made, seed=3, seconds=1.5, metrics=metrics)
    return path, made


def test_manifest_says_how_it_came_about(artefact):
    path, made = artefact
    m = load_json(manifest_path(path))
    assert (m["seed"], m["seconds"], m["settings"]) == (3, 1.5, {"gamma": .99})
    assert m["metrics"] == {"return": 640., "x": None}
    assert m["sha256"] == file_hash(path)
    assert [i["name"] for i in m["inputs"]] == ["drones.json", "teachers"]
    assert m["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert finished(path, **made)


def other_settings(path, made): made["settings"] = {"gamma": .5}
def other_input(path, made): save_json(made["inputs"][0], [2])
def other_input_folder(path, made): save_json(made["inputs"][1] / "0001.json", 1)
def other_order(path, made): made["inputs"].reverse()
def fewer_inputs(path, made): made["inputs"].pop()
def input_gone(path, made): made["inputs"][0].unlink()
def other_artefact(path, made): save_json(path, "other")
def artefact_gone(path, made): path.unlink()
def manifest_gone(path, made): manifest_path(path).unlink()
def manifest_truncated(path, made): os.truncate(manifest_path(path), 50)


@pytest.mark.parametrize("change", [
    other_settings, other_input, other_input_folder, other_order, fewer_inputs, input_gone,
    other_artefact, artefact_gone, manifest_gone, manifest_truncated])
def test_not_finished_after_a_change(artefact, change):
    path, made = artefact
    change(path, made)
    assert not finished(path, **made)


def test_missing_input_is_an_error_when_a_manifest_is_written(artefact):
    path, made = artefact
    with pytest.raises(FileNotFoundError, match="nope.json.*run the stage that makes it first"):
        write_manifest(path, settings={}, inputs=["nope.json"])
    assert finished(path, **made)


# --- checkpoints

def same(a, b):
    "Equal in value and in type, tensors and arrays too"
    if type(a) is not type(b): return False
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (np.ndarray, np.generic)): return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict): return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@pytest.mark.parametrize("value", [
    1/3, 2**100, float("nan"), -float("inf"), None, True, "$dict ü", {}, [[], ()],
    {3: "integer key", (1, "a"): "tuple key", "$tensor": "a name that looks reserved"},
    {"t": (torch.ones(2), [torch.zeros(0, dtype=torch.int64)])}, torch.tensor([True, False]),
    np.arange(6, dtype=np.uint32).reshape(2, 3), np.float32(.1), np.float64(.1), np.array(3),
    random.getstate(), np.random.default_rng(1).bit_generator.state, np.random.get_state(),
    torch.get_rng_state(),
], ids=lambda v: type(v).__name__)
def test_state_round_trip_is_exact(tmp_path, value):
    state = {"value": value, "again": [value]}
    assert same(load_state(save_state(tmp_path / "s.safetensors", state)), state)


class Training:
    "A noisy little training that saves all it needs after every step"
    def __init__(self, directory):
        torch.manual_seed(0)
        self.rng, self.net = np.random.default_rng(0), torch.nn.Linear(4, 4)
        self.adam = torch.optim.Adam(self.net.parameters(), 1e-2)
        self.saved, self.step = Checkpoints(directory, keep=2), 0

    def resume(self):
        state = self.saved.load()
        self.net.load_state_dict(state["net"])
        self.adam.load_state_dict(state["adam"])
        torch.set_rng_state(state["torch"])
        self.rng.bit_generator.state, self.step = state["numpy"], state["step"]
        return self

    def train(self, steps):
        while self.step < steps:
            noise = float(self.rng.normal())
            loss = (self.net(torch.randn(8, 4))**2).mean() + noise*self.net.weight.sum()
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
            self.step += 1
            self.saved.save(self.step, self.state(), -loss.item())
        return self.net.weight

    def state(self):
        return dict(step=self.step, net=self.net.state_dict(), adam=self.adam.state_dict(),
                    torch=torch.get_rng_state(), numpy=self.rng.bit_generator.state)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = Training(tmp_path / "whole").train(12)
    Training(tmp_path / "parts").train(5)
    assert torch.equal(Training(tmp_path / "parts").resume().train(12), whole)


def steps(directory): return [i["step"] for i in Checkpoints(directory).infos().values()]


def test_newest_and_best_survive_restarts(tmp_path):
    new = lambda: Checkpoints(tmp_path, keep=2)   # as after a restart
    for step, metric in enumerate([1., 9., 3., None, float("nan"), 5.]):
        new().save(step, {"step": step}, metric)
    assert steps(tmp_path) == [1, 4, 5]
    assert load_info(new().best()) == {"step": 1, "metric": 9.}
    assert new().load(new().latest()) == {"step": 5}
    new().save(6, {}, 10.)
    assert steps(tmp_path) == [5, 6]   # the old best made room for the new


def test_no_checkpoint(tmp_path):
    empty = Checkpoints(tmp_path)
    assert empty.latest() is None and empty.best() is None
    with pytest.raises(FileNotFoundError, match="no checkpoint in"): empty.load()


def test_going_back_to_an_earlier_step_counts_as_newest(tmp_path):
    c = Checkpoints(tmp_path, keep=2)
    for step in (100, 200, 300, 150): c.save(step, {"step": step})
    assert c.load() == {"step": 150} and steps(tmp_path) == [300, 150]


@pytest.fixture
def damaged(tmp_path, request):
    "Three checkpoints, of which the newest is damaged"
    c = Checkpoints(tmp_path, keep=3)
    for step in range(3): c.save(step, {"step": step, "w": torch.ones(50)}, float(step))
    newest = c.latest()
    newest.write_bytes(request.param(newest.read_bytes()))
    return c


@pytest.mark.parametrize("damaged", [
    pytest.param(lambda b: b[:-1], id="checkpoint-truncated"),
    pytest.param(lambda b: b[:5], id="checkpoint-nearly-nothing"),
    pytest.param(lambda b: b"", id="checkpoint-empty"),
    pytest.param(lambda b: b"PK\x03\x04" + b, id="checkpoint-is-a-zip"),
    pytest.param(lambda b: b"\x00"*len(b), id="checkpoint-zeroed"),
], indirect=True)
def test_a_damaged_newest_falls_back(damaged):
    newest = damaged.paths()[-1]
    with pytest.warns(UserWarning, match="checkpoint skipped: .*step-000000000002.safetensors"):
        assert damaged.load()["step"] == 1
    assert damaged.best() == damaged.paths()[1]
    damaged.save(2, {"step": 2})   # written again: a damaged one does not take a good one's place
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert damaged.load()["step"] == 2 and steps(damaged.directory) == [0, 1, 2]
    assert newest not in damaged.paths()


def test_a_checkpoint_that_cannot_be_stored_leaves_the_others(tmp_path):
    c = Checkpoints(tmp_path)
    c.save(1, {"step": 1})
    with pytest.raises(RecordError): c.save(2, {"f": print})
    assert c.load() == {"step": 1}


# --- rows

def grown(path):
    "A file with three rows that a checkpoint knows of, and four more; -> (file, its mark)"
    rows = RowFile(path, 2)
    rows.append(np.ones((3, 2)))
    mark = rows.mark()
    rows.append(np.zeros((4, 2)))
    return rows, mark


def test_rows_after_the_checkpoint_are_written_again(tmp_path):
    _, mark = grown(tmp_path / "a.f32")
    resumed = RowFile(tmp_path / "a.f32", 2)
    assert resumed.read(mark).tolist() == [[1, 1]] * 3
    resumed.append(np.full((1, 2), 5))
    assert resumed.read(resumed.mark()).tolist() == [[1, 1]] * 3 + [[5, 5]]
    assert (tmp_path / "a.f32").stat().st_size == 32


@pytest.mark.parametrize("spoil, kind, sentence", [
    pytest.param(absent, FileNotFoundError, "it holds 3 rows of the run", id="rows-absent"),
    pytest.param(cut(lambda b: b[:20]), RecordError, "is truncated: it holds 2 of 3 rows",
                 id="rows-truncated"),
    pytest.param(cut(lambda b: bytes(len(b))), RecordError, "its first 3 rows are not those",
                 id="rows-damaged"),
])
def test_bad_rows(tmp_path, spoil, kind, sentence):
    rows, mark = grown(tmp_path / "a.f32")
    spoil(tmp_path / "a.f32")
    with pytest.raises(kind, match=sentence): rows.read(mark)


# --- one writer

HOLD = """
import sys, time
from raptor_nb.core.records import run_lock
with run_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)
"""


def test_a_second_process_is_told_and_death_frees(tmp_path):
    first = python(HOLD, tmp_path)
    try:
        assert first.stdout.readline() == "held\n"
        sentence = rf"is being written by process {first.pid} on .*; wait for it, end it, or choose"
        with pytest.raises(WriteError, match=sentence):
            with run_lock(tmp_path): pass
    finally:
        first.kill()
        first.communicate(timeout=20)
    with run_lock(tmp_path) as held: assert held == tmp_path


def test_the_lock_is_freed_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with run_lock(tmp_path / "run"): 1/0
    with run_lock(tmp_path / "run"): pass
