"Exported files: the same policy, written whole or not at all"
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raptor_nb.core.records import Checkpoints, load_json, manifest_path
from raptor_nb.policy import PolicyError, RaptorPolicy, Teachers, load_policy, published_checkpoint
from raptor_nb.targets import onnx as onnx_target
from raptor_nb.targets import registry
from raptor_nb.targets.artefact import ExportError, Target, flight_observations, trial_inputs
from raptor_nb.targets.harness import same_weights
from raptor_nb.targets.json import JsonPolicy
from raptor_nb.targets.onnx import OnnxPolicy, OnnxSequence, onnx_model
from raptor_nb.targets.registry import DEFAULT, OPENERS, TARGETS, export, export_file
from raptor_nb.targets.registry import open_artefact, parse_targets, verify

onnx = pytest.importorskip("onnx", reason="needs the extra raptor-nb[export]")
pytest.importorskip("onnxruntime", reason="needs the extra raptor-nb[export]")


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    policy = RaptorPolicy()
    with torch.no_grad():
        for w in policy.parameters(): w.normal_(std=.3)   # the initial hidden state as well
    return policy


@pytest.fixture(scope="module")
def files(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    policy.save(folder / "student.safetensors")
    export(policy, folder, source=folder / "student.safetensors")
    return folder


def file_of(folder, target): return folder / f"student{TARGETS[target].ending}"


@pytest.mark.parametrize("target", DEFAULT.split(","))
def test_500_recurrent_steps_are_equal(files, policy, target):
    table = verify(file_of(files, target), policy, steps=500, batches=(1, 3, 32))
    assert set(table.inputs) == {"flight", "random", "extreme", "zero"} and len(table) == 12
    assert table.difference.max() <= 1e-5
    metrics = load_json(manifest_path(file_of(files, target)))["metrics"]
    assert metrics["largest_difference"] <= 1e-5


ANY_SIZE = [name for name in DEFAULT.split(",") if TARGETS[name].fits is None]


@pytest.mark.parametrize("seed, target", list(enumerate(ANY_SIZE)))
def test_other_sizes(tmp_path, seed, target):
    torch.manual_seed(seed)
    policy = RaptorPolicy(obs_dim=26, hidden_dim=8 + seed, action_dim=4)
    path = tmp_path / f"p{TARGETS[target].ending}"
    assert export_file(policy, target, path).difference.max() <= 1e-5
    assert open_artefact(path).evaluate_step(np.zeros((2, 26), np.float32)).shape == (2, 4)


def test_published_policy(tmp_path):
    table = export(RaptorPolicy.published(), tmp_path)
    assert table.target.tolist() == DEFAULT.split(",")
    assert (table.difference <= 1e-5).all() and (table.bytes < 100_000).all()
    assert (tmp_path / "student.onnx").stat().st_size < 15_000


def test_a_new_target_is_one_module(tmp_path, monkeypatch, policy):
    "What a module of raptor_nb.targets lists is found, written and opened"
    write = lambda policy, path, source, route: policy.save(path)
    new = Target("copy", ".copy", "a test", write, RaptorPolicy.load)
    monkeypatch.setattr(onnx_target, "TARGETS", [*onnx_target.TARGETS, new])
    assert registry._found()["copy"] is new
    monkeypatch.setitem(registry.TARGETS, "copy", new)
    monkeypatch.setitem(registry.OPENERS, ".copy", new.open)
    assert export_file(policy, "copy", tmp_path / "p.copy").difference.max() <= 1e-5


def test_flights_are_flights():
    "The policy's own, under a constant force; near their target after a while; the same each time"
    policy = RaptorPolicy.published()
    seen = flight_observations(policy, 16, 300)
    assert seen.shape == (300, 16, 22)
    assert np.median(np.linalg.norm(seen[150:, :, :3], axis=2)) < .2
    assert flight_observations(policy, 16, 300) is seen
    assert np.abs(flight_observations(policy, 16, 300, seed=1) - seen).max() > .1


def shapes(model):
    "Of inputs and outputs, free sizes by name"
    values = [*model.graph.input, *model.graph.output]
    return [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]


def test_a_sequence_is_its_steps(files):
    whole, given = OnnxSequence(files / "student.sequence.onnx"), trial_inputs("random", 40, 3)
    assert isinstance(open_artefact(files / "student.sequence.onnx"), OnnxSequence)
    assert type(open_artefact(files / "student.onnx")) is OnnxPolicy
    together = whole.evaluate_sequence(given)
    assert np.abs(np.stack([whole.evaluate_step(o) for o in given]) - together).max() < 1e-6
    want = [["time", "batch", 22], [1, "batch", 16], ["time", "batch", 4], [1, "batch", 16]]
    assert shapes(onnx.load(files / "student.sequence.onnx")) == want


def test_json_says_what_a_reader_needs(files):
    text = (files / "student.json").read_text()
    data = json.loads(text)
    first, gru, last = data["layers"]
    assert [layer["type"] for layer in data["layers"]] == ["dense", "gru", "dense"]
    assert first["activation"] == "relu" and gru["gates"] == ["r", "z", "n"]
    assert data["rate_hz"] == 100 and data["action"]["range"] == [-1, 1]
    assert data["action"]["motor_order"][0] == "front-right"
    assert [p["to"] for p in data["observation"]["layout"]] == [3, 12, 15, 18, 22]
    assert data["provenance"]["source"] == "student.safetensors" and str(files) not in text


def test_json_holds_the_same_float32(files, policy):
    "Bit by bit, and its example is what it answers"
    data, weights = json.loads((files / "student.json").read_text()), policy.state_dict()
    gru, example = data["layers"][1], data["example"]
    for name, key in (("weight_ih", "weights_input"), ("weight_hh", "weights_hidden"),
                      ("bias_ih", "biases_input"), ("bias_hh", "biases_hidden")):
        assert np.array_equal(np.float32(gru[key]), weights[f"gru.gru.{name}_l0"])
    initial = np.float32(gru["initial_hidden_state"])
    assert np.array_equal(initial, policy.gru.initial_hidden_state)
    flyer = JsonPolicy(files / "student.json")
    answers = [flyer.evaluate_step(np.float32([o]))[0] for o in example["observation"]]
    assert np.abs(np.array(answers) - example["action"]).max() < 1e-5


def test_any_policy_can_be_exported(tmp_path, policy):
    "A student, rl_tools' HDF5, and checkpoints: the best so far, or the last if none was evaluated"
    ours, other = dict(policy.state_dict()), dict(RaptorPolicy().state_dict())
    policy.save(tmp_path / "a.safetensors")
    policy.to_hdf5(tmp_path / "a.h5")
    save = lambda name, state: Checkpoints(tmp_path / name).save(5, state)
    online = save("online", {"student": other, "best": ours, "best_return": 1.})
    first = save("first", {"student": ours, "best": None})
    tuned = save("tuned", {"run": {"student": other}, "best": ours})
    folder = tmp_path / "online"
    for path in (tmp_path / "a.safetensors", tmp_path / "a.h5", online, first, tuned, folder):
        found = load_policy(path).state_dict()
        assert all(torch.equal(w, found[k]) for k, w in ours.items()), path


def test_a_batch_is_its_rows(files):
    given, together = trial_inputs("random", 50, 4), OnnxPolicy(files / "student.onnx")
    actions = np.stack([together.evaluate_step(o) for o in given], 1)
    for i in range(4):
        alone = OnnxPolicy(files / "student.onnx")
        answers = np.stack([alone.evaluate_step(o[i:i + 1])[0] for o in given])
        assert np.abs(answers - actions[i]).max() < 1e-6


def test_reset_forgets(files):
    flyer, given = OnnxPolicy(files / "student.onnx"), trial_inputs("random", 2, 3)
    first = flyer.evaluate_step(given[0])
    assert np.abs(flyer.evaluate_step(given[0]) - first).max() > 1e-3
    for batch in (None, 3):
        flyer.reset(batch)
        assert np.array_equal(flyer.evaluate_step(given[0]), first)


def test_interface_of_onnx(files):
    model = onnx.load(files / "student.onnx")
    assert [v.name for v in model.graph.input] == ["observation", "hidden_in"]
    assert [v.name for v in model.graph.output] == ["action", "hidden_out"]
    assert shapes(model)[:2] == [["batch", 22], [1, "batch", 16]]
    assert model.opset_import[0].version == 17
    assert "GRU" not in {n.op_type for n in model.graph.node}


def test_metadata_of_onnx(files):
    about = {p.key: p.value for p in onnx.load(files / "student.onnx").metadata_props}
    layout = json.loads(about["observation_layout"])
    assert [p["to"] for p in layout] == [3, 12, 15, 18, 22] and layout[3]["frame"] == "body"
    assert about["rate_hz"] == "100" and about["frames"].startswith("FLU")
    assert about["motor_order"].startswith("front-right, back-right")
    assert about["source"] == "student.safetensors" and len(about["source_sha256"]) == 64
    assert str(files) not in json.dumps(about), "no path of this machine in a file that travels"


@pytest.fixture
def foundation():
    return pytest.importorskip("foundation_policy", reason="needs the extra raptor-nb[sim]")


def test_foundation_policy_reads_our_hdf5(files, policy, foundation):
    theirs, ours = foundation.load(files / "student.h5"), policy.cpu_copy()
    theirs.reset()   # loading leaves it at the end of its example
    for o in trial_inputs("random", 100, 2):
        assert np.abs(theirs.evaluate_step(o) - ours.evaluate_step(o)).max() < 1e-5


def test_published_weights_survive_the_round_trip(tmp_path, foundation):
    "Ours, ours again, and foundation_policy's own loader: bit by bit"
    policy, original = RaptorPolicy.published(), foundation.load(published_checkpoint())
    export_file(policy, "h5", tmp_path / "p.h5")
    back = RaptorPolicy.from_hdf5(tmp_path / "p.h5").state_dict()
    assert all(torch.equal(w, back[k]) for k, w in policy.state_dict().items())
    assert same_weights(foundation.load(tmp_path / "p.h5"), original)
    with torch.no_grad(): policy.gru.gru.weight_hh_l0[0, 0] += 1e-6
    export_file(policy, "h5", tmp_path / "p.h5")
    assert not same_weights(foundation.load(tmp_path / "p.h5"), original)


@pytest.mark.parametrize("name, at", [
    ("gru.gru.weight_hh_l0", 3), ("gru.gru.bias_hh_l0", 40), ("output_layer.linear.bias", 0),
    ("gru.initial_hidden_state", 5)])
def test_verify_finds_one_wrong_weight(files, policy, name, at):
    other = policy.cpu_copy()
    with torch.no_grad(): other.state_dict()[name].view(-1)[at] += .01
    sentence = r"student.onnx' is not this policy: on 500 steps \(flight inputs, batch of 1\) " \
               r"its actions differ by .* at step \d+, and by up to"
    with pytest.raises(ExportError, match=sentence): verify(files / "student.onnx", other)


def test_verify_refuses_nan(policy):
    class Broken(RaptorPolicy):
        def evaluate_step(self, observation):
            return super().evaluate_step(observation) * np.float32(np.nan)
    with pytest.raises(ExportError, match="on 20 steps .* at step 0, "): verify(Broken(), policy, steps=20)


def test_finished_targets_are_kept(files, policy):
    before = (files / "student.onnx").stat().st_mtime_ns
    table = export(policy, files, source=files / "student.safetensors")
    assert table.kept.all() and (files / "student.onnx").stat().st_mtime_ns == before


def test_a_damaged_file_is_made_again(policy, tmp_path):
    source, path = tmp_path / "student.safetensors", tmp_path / "student.onnx"
    policy.save(source)
    make = lambda: export(policy, tmp_path, "onnx,json", source=source)
    make()
    good = path.read_bytes()
    path.write_bytes(good[:100])
    assert make().kept.tolist() == [False, True]
    assert path.read_bytes() == good


def test_what_differs_is_not_written(policy, tmp_path, monkeypatch):
    "A converter that swaps two gates leaves the old file as it was"
    path, right = tmp_path / "student.onnx", onnx_target.gates
    path.write_bytes(b"old")
    swapped = lambda g: g | {"W_r": g["W_z"], "W_z": g["W_r"]}
    monkeypatch.setattr(onnx_target, "gates", lambda policy: swapped(right(policy)))
    with pytest.raises(ExportError, match="student.onnx' is not this policy"):
        export_file(policy, "onnx", path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_package_names_the_extra(policy, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = rf"needs {package}, which is not installed: pip install 'raptor-nb\[export\]' " \
               r"\(written: h5, json\)"
    with pytest.raises(ModuleNotFoundError, match=sentence):
        export(policy, tmp_path, "onnx,sequence,h5,json")
    written = ["student.h5", "student.json"]
    both = sorted([*written, *(f"{name}.manifest.json" for name in written)])
    assert sorted(p.name for p in tmp_path.iterdir()) == both


def test_missing_tensorflow_or_compiler_leaves_the_other_targets(policy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setenv("CC", "no-such-compiler")
    sentence = r"export to TFLite needs tensorflow, which is not installed: pip install " \
               r"'raptor-nb\[tflite\]' \(in a clone: make tflite\); running a C header needs " \
               r"a C compiler, and none is installed: install gcc or clang, or name one with " \
               r"CC=... \(written: json\)"
    with pytest.raises(ModuleNotFoundError, match=sentence):
        export(policy, tmp_path, "tflite,tflite_int8,c,json")
    written = sorted(p.name for p in tmp_path.iterdir())
    assert written == ["student.json", "student.json.manifest.json"]


# --- bad input

def _file(folder, name, data):
    (folder / name).write_bytes(data)
    return folder / name


def _unwritable(folder, name): return _file(folder, "file", b"x") / name


def _nan():
    policy = RaptorPolicy()
    with torch.no_grad(): policy.gru.gru.weight_ih_l0[0, 0] = float("nan")
    return policy


def _foreign(folder):
    "An ONNX file of one operator"
    h = onnx.helper
    x, y = (h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = h.make_graph([h.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "foreign.onnx")
    return OnnxPolicy(folder / "foreign.onnx")


def _written(policy, target, folder):
    path = folder / f"p{TARGETS[target].ending}"
    export_file(policy, target, path)
    return path


def _changed(policy, folder, change):
    "A JSON file in which something is wrong, opened"
    data = json.loads(_written(policy, "json", folder).read_text())
    change(data["layers"])
    return JsonPolicy(_file(folder, "p.json", json.dumps(data).encode()))


def _checkpoint(folder, state): return load_policy(Checkpoints(folder / "c").save(1, state))


def refused(act, message, id, error=ExportError): return pytest.param(act, error, message, id=id)


NAN = "gru.gru.weight_ih_l0 holds 1 values that are not finite"
ODD = {"student": {"input_layer.linear.weight": torch.zeros(2, 3)}}   # another network


@pytest.mark.parametrize("act, error, message", [
    refused(lambda d, p: load_policy(d / "student.safetensors"),
            "there is no student '.*student.safetensors'; make it with: papermill "
            "nbs/03_direct.ipynb", "missing-student", FileNotFoundError),
    *(refused(lambda d, p, s=s: load_policy(_file(d, f"p{s}", b"x")), "is exported already",
              f"export-of-an-export-{s[1:]}", PolicyError)
      for s in OPENERS if s not in (".h5", ".hdf5", ".tar")),
    refused(lambda d, p: load_policy(_file(d, "p.safetensors", b"\0" * 30)), "p.safetensors",
            "student-corrupt", PolicyError),
    refused(lambda d, p: load_policy(_file(d, "p.h5", b"\x89HDF" + b"\0" * 30)),
            "is not a readable HDF5 file", "student-truncated-hdf5", PolicyError),
    refused(lambda d, p: load_policy(d), "there is no checkpoint in the folder",
            "export-of-an-empty-folder", PolicyError),
    refused(lambda d, p: _checkpoint(d, {"actors": {"w1": torch.zeros(2)}}),
            r"is a checkpoint without a student \(it holds actors\); give one of 03_direct or 04_distill",
            "checkpoint-of-teachers", PolicyError),
    refused(lambda d, p: _checkpoint(d, ODD), "is a checkpoint without a student",
            "checkpoint-of-another-network", PolicyError),
    refused(lambda d, p: parse_targets("onnx,tflit"),
            f"target 'tflit' is unknown; choose from {', '.join(TARGETS)}, or all",
            "unknown-target"),
    refused(lambda d, p: parse_targets(""), "target '' is unknown", "no-target"),
    refused(lambda d, p: export_file(Teachers(1), "onnx", d / "p.onnx"),
            "cannot export a Teachers; it must be a RaptorPolicy", "export-of-teachers"),
    *(refused(lambda d, p, t=t: export_file(_nan(), t, d / "p"), NAN, f"nan-weights-{t}")
      for t in DEFAULT.split(",")),
    *(refused(lambda d, p, t=t: export_file(p, t, _unwritable(d, f"p.{t}")),
              f"cannot write '.*p.{t}'", f"export-unwritable-folder-{t}", OSError)
      for t in DEFAULT.split(",")),
    refused(lambda d, p: OnnxPolicy(d / "p.onnx"),
            "there is no ONNX file '.*p.onnx'; make it with: papermill nbs/05_export.ipynb",
            "missing-onnx", FileNotFoundError),
    *(refused(lambda d, p, x=x: OnnxPolicy(_file(d, "p.onnx", x)),
              "p.onnx' is not a readable ONNX file", f"onnx-{name}")
      for name, x in {"empty": b"", "other-type": b"{}"}.items()),
    refused(lambda d, p: OnnxPolicy(_file(d, "p.onnx", onnx_model(p).SerializeToString()[:5000])),
            "p.onnx' is not a readable ONNX file", "onnx-truncated"),
    refused(lambda d, p: _foreign(d),
            "is another network: it has x of 1 dimensions, y of 1 dimensions; it must take "
            "observation and hidden_in", "onnx-foreign"),
    refused(lambda d, p: OnnxPolicy(_written(p, "sequence", d)),
            "is another network: it has observation of 3 dimensions", "onnx-sequence-as-step"),
    refused(lambda d, p: JsonPolicy(d / "p.json"), "there is no JSON file", "missing-json",
            FileNotFoundError),
    refused(lambda d, p: JsonPolicy(_file(d, "p.json", b'{"format": "raptor')),
            "p.json' is not JSON; it may be truncated", "json-truncated"),
    refused(lambda d, p: JsonPolicy(_file(d, "p.json", b"\xff\xfe")), "p.json' is not JSON",
            "json-binary"),
    refused(lambda d, p: JsonPolicy(_file(d, "p.json", b"[1, 2]")),
            "p.json' is other JSON; its format must be 'raptor_nb policy 1'", "json-foreign"),
    refused(lambda d, p: _changed(p, d, lambda layers: layers.pop()),
            "has layers that do not fit together", "json-layer-missing"),
    refused(lambda d, p: _changed(p, d, lambda layers: layers[1]["biases_input"].pop()),
            "has layers that do not fit together .*size mismatch for gru.gru.bias_ih_l0",
            "json-wrong-dimensions"),
    refused(lambda d, p: _changed(p, d, lambda layers: layers[2].update(biases=[np.nan] * 4)),
            "output_layer.linear.bias holds 4 values that are not finite", "json-nan-weights"),
    refused(lambda d, p: verify(d / "p.pt", p),
            f"its suffix is '.pt'; it must be one of {', '.join(OPENERS)}",
            "verify-unknown-suffix"),
    refused(lambda d, p: verify(RaptorPolicy(hidden_dim=8), p),
            r"has \(observed, hidden, action\) values \(22, 8, 4\); the policy has "
            r"\(22, 16, 4\)", "verify-other-size"),
])
def test_bad_input(tmp_path, policy, act, error, message):
    before = set(tmp_path.iterdir())
    with pytest.raises(error, match=message) as caught: act(tmp_path, policy)
    assert "\n" not in str(caught.value)
    new = set(tmp_path.iterdir()) - before
    assert not [p for p in new if p.name.startswith(".")], "nothing half-written"


@pytest.mark.parametrize("observation, message", [
    pytest.param(np.zeros((2, 21), np.float32), r"observation has shape \(2, 21\)", id="shape"),
    pytest.param(np.full((2, 22), np.nan, np.float32), "observation holds nan", id="nan"),
    pytest.param(np.zeros((2, 22), int), "must be floating point", id="dtype"),
    pytest.param(np.zeros((3, 22), np.float32), "holds 3 drones but the hidden state 2", id="n"),
])
def test_bad_observation(files, observation, message):
    flyer = OnnxPolicy(files / "student.onnx")
    flyer.reset(2)
    with pytest.raises(PolicyError, match=message): flyer.evaluate_step(observation)
