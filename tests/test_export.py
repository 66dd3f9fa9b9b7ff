"Exported files: the same policy, written whole or not at all"
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from raptor_nb.core.records import load_json, manifest_path
from raptor_nb.core.records import Checkpoints, RecordError
from raptor_nb.export import DEFAULT, ExportError, JsonPolicy, OnnxPolicy, TARGETS, export, export_file, load_policy, onnx_model, open_artefact, parse_targets, provenance, trial_inputs, verify
from raptor_nb.policy import PolicyError, RaptorPolicy, Teachers, published_checkpoint
from raptor_nb.proof import same_weights
from raptor_nb.targets import onnx as onnx_target
from raptor_nb.targets.artefact import flown
from raptor_nb.targets.onnx import OnnxSequence

onnx = pytest.importorskip("onnx", reason="needs the extra raptor-nb[export]")
pytest.importorskip("onnxruntime", reason="needs the extra raptor-nb[export]")


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    policy = RaptorPolicy()
    with torch.no_grad():
        for w in policy.parameters(): w.normal_(std=.3) # an initial hidden state, too, that is not zero
    return policy


@pytest.fixture(scope="module")
def files(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    policy.save(folder / "student.safetensors")
    export(policy, folder, source=folder / "student.safetensors")
    return folder


def file_of(folder, target): return folder / f"student{TARGETS[target][0]}"


@pytest.mark.parametrize("target", DEFAULT.split(","))
def test_500_recurrent_steps_are_equal(files, policy, target):
    table = verify(file_of(files, target), policy, steps=500, batches=(1, 3, 32))
    assert set(table.inputs) == {"flight", "random", "extreme", "zero"} and len(table) == 12 and table.difference.max() <= 1e-5
    assert load_json(manifest_path(file_of(files, target)))["metrics"]["largest_difference"] <= 1e-5


@pytest.mark.parametrize("seed, target", list(enumerate(DEFAULT.split(","))))
def test_other_sizes(tmp_path, seed, target):
    torch.manual_seed(seed)
    policy = RaptorPolicy(obs_dim=26, hidden_dim=8 + seed, action_dim=4)
    path = tmp_path / f"p{TARGETS[target][0]}"
    assert export_file(policy, target, path).difference.max() <= 1e-5
    assert open_artefact(path).evaluate_step(np.zeros((2, 26), np.float32)).shape == (2, 4)


def test_published_policy(tmp_path):
    table = export(RaptorPolicy.published(), tmp_path)
    assert (table.difference <= 1e-5).all() and (table.bytes < 100_000).all() and table.target.tolist() == DEFAULT.split(",")
    assert (tmp_path / "student.onnx").stat().st_size < 15_000


def test_flights_are_flights():
    "What files are compared on: the policy's own flights in a steady wind, near their target after a while, the same each time"
    policy = RaptorPolicy.published()
    seen = flown(policy, 16, 300)
    assert seen.shape == (300, 16, 22) and np.median(np.linalg.norm(seen[150:, :, :3], axis=2)) < .2
    assert flown(policy, 16, 300) is seen and np.abs(flown(policy, 16, 300, seed=1) - seen).max() > .1


def test_a_sequence_is_its_steps(files):
    whole, given = OnnxSequence(files / "student.sequence.onnx"), trial_inputs("random", 40, 3)
    assert isinstance(open_artefact(files / "student.sequence.onnx"), OnnxSequence) and type(open_artefact(files / "student.onnx")) is OnnxPolicy
    together = whole.evaluate_sequence(given)
    assert np.abs(np.stack([whole.evaluate_step(o) for o in given]) - together).max() < 1e-6
    model = onnx.load(files / "student.sequence.onnx")
    assert [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*model.graph.input, *model.graph.output]] == [["time", "batch", 22], [1, "batch", 16], ["time", "batch", 4], [1, "batch", 16]]


def test_json_says_what_a_reader_needs(files, policy):
    text = (files / "student.json").read_text()
    data = json.loads(text)
    assert [l["type"] for l in data["layers"]] == ["dense", "gru", "dense"] and data["layers"][0]["activation"] == "relu" and data["layers"][1]["gates"] == ["r", "z", "n"]
    assert data["rate_hz"] == 100 and data["action"]["range"] == [-1, 1] and data["action"]["motor_order"][0] == "front-right" and [p["to"] for p in data["observation"]["layout"]] == [3, 12, 15, 18, 22]
    assert data["provenance"]["source"] == "student.safetensors" and str(files) not in text
    for name, key in (("weight_ih", "weights_input"), ("weight_hh", "weights_hidden"), ("bias_ih", "biases_input"), ("bias_hh", "biases_hidden")):
        assert np.array_equal(np.float32(data["layers"][1][key]), policy.state_dict()[f"gru.gru.{name}_l0"]), "the same float32, bit by bit"
    assert np.array_equal(np.float32(data["layers"][1]["initial_hidden_state"]), policy.gru.initial_hidden_state)
    flyer = JsonPolicy(files / "student.json")
    assert max(np.abs(flyer.evaluate_step(np.float32([o])) - a).max() for o, a in zip(data["example"]["observation"], data["example"]["action"])) < 1e-5


def test_any_policy_can_be_exported(tmp_path, policy):
    "A student, rl_tools' HDF5, and checkpoints of a training: the best so far, or the last where none was judged"
    other = RaptorPolicy()
    policy.save(tmp_path / "a.safetensors"); policy.to_hdf5(tmp_path / "a.h5")
    online = Checkpoints(tmp_path / "online").save(5, {"student": dict(other.state_dict()), "best": dict(policy.state_dict()), "best_return": 1.})
    first = Checkpoints(tmp_path / "first").save(5, {"student": dict(policy.state_dict()), "best": None})
    polish = Checkpoints(tmp_path / "polish").save(5, {"run": {"student": dict(other.state_dict())}, "best": dict(policy.state_dict())})
    for path in (tmp_path / "a.safetensors", tmp_path / "a.h5", online, first, polish, tmp_path / "online"):
        assert all(torch.equal(w, load_policy(path).state_dict()[k]) for k, w in policy.state_dict().items()), path


def test_a_batch_is_its_rows(files):
    given, together = trial_inputs("random", 50, 4), OnnxPolicy(files / "student.onnx")
    actions = np.stack([together.evaluate_step(o) for o in given], 1)
    for i in range(4):
        alone = OnnxPolicy(files / "student.onnx")
        assert np.abs(np.stack([alone.evaluate_step(o[i:i + 1])[0] for o in given]) - actions[i]).max() < 1e-6


def test_reset_forgets(files):
    flyer, given = OnnxPolicy(files / "student.onnx"), trial_inputs("random", 2, 3)
    first = flyer.evaluate_step(given[0])
    assert np.abs(flyer.evaluate_step(given[0]) - first).max() > 1e-3
    flyer.reset()
    assert np.array_equal(flyer.evaluate_step(given[0]), first)
    flyer.reset(3)
    assert np.array_equal(flyer.evaluate_step(given[0]), first)


def test_metadata_and_interface(files):
    model = onnx.load(files / "student.onnx")
    assert [v.name for v in model.graph.input] == ["observation", "hidden_in"] and [v.name for v in model.graph.output] == ["action", "hidden_out"]
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 22]
    assert [d.dim_param or d.dim_value for d in model.graph.input[1].type.tensor_type.shape.dim] == [1, "batch", 16]
    assert model.opset_import[0].version == 17 and "GRU" not in {n.op_type for n in model.graph.node}
    about = {p.key: p.value for p in model.metadata_props}
    layout = json.loads(about["observation_layout"])
    assert [p["to"] for p in layout] == [3, 12, 15, 18, 22] and layout[3]["frame"] == "body"
    assert about["rate_hz"] == "100" and about["motor_order"].startswith("front-right, back-right") and about["frames"].startswith("FLU")
    assert about["source"] == "student.safetensors" and len(about["source_sha256"]) == 64
    assert str(files) not in json.dumps(about), "no path of this machine in a file that travels"


def test_foundation_policy_reads_our_hdf5(files, policy):
    theirs = pytest.importorskip("foundation_policy", reason="needs the extra raptor-nb[sim]").load(files / "student.h5")
    ours = policy.cpu_copy()
    theirs.reset() # loading leaves it at the end of its example
    for o in trial_inputs("random", 100, 2): assert np.abs(theirs.evaluate_step(o) - ours.evaluate_step(o)).max() < 1e-5


def test_published_weights_survive_the_round_trip(tmp_path):
    "Ours, ours again, and foundation_policy's own loader: bit by bit"
    foundation_policy = pytest.importorskip("foundation_policy", reason="needs the extra raptor-nb[sim]")
    published = RaptorPolicy.published()
    export_file(published, "h5", tmp_path / "p.h5")
    back = RaptorPolicy.from_hdf5(tmp_path / "p.h5").state_dict()
    assert all(torch.equal(w, back[k]) for k, w in published.state_dict().items())
    assert same_weights(foundation_policy.load(tmp_path / "p.h5"), foundation_policy.load(published_checkpoint()))
    with torch.no_grad(): published.gru.gru.weight_hh_l0[0, 0] += 1e-6
    export_file(published, "h5", tmp_path / "p.h5")
    assert not same_weights(foundation_policy.load(tmp_path / "p.h5"), foundation_policy.load(published_checkpoint()))


@pytest.mark.parametrize("name, at", [("gru.gru.weight_hh_l0", 3), ("gru.gru.bias_hh_l0", 40), ("output_layer.linear.bias", 0), ("gru.initial_hidden_state", 5)])
def test_verify_finds_one_wrong_weight(files, policy, name, at):
    other = policy.cpu_copy()
    with torch.no_grad(): other.state_dict()[name].view(-1)[at] += .01
    with pytest.raises(ExportError, match=r"student.onnx' is not this policy: from step \d+ of 500 on \(flight inputs, batch of 1\) its actions differ by up to"):
        verify(files / "student.onnx", other)


def test_verify_refuses_nan(policy):
    class Broken(RaptorPolicy):
        def evaluate_step(self, observation): return super().evaluate_step(observation) * np.float32(np.nan)
    with pytest.raises(ExportError, match="from step 0 of 20"): verify(Broken(), policy, steps=20)


def test_finished_targets_are_kept(files, policy):
    before = (files / "student.onnx").stat().st_mtime_ns
    table = export(policy, files, source=files / "student.safetensors")
    assert table.kept.all() and (files / "student.onnx").stat().st_mtime_ns == before


def test_a_damaged_file_is_made_again(policy, tmp_path):
    policy.save(tmp_path / "student.safetensors")
    make = lambda: export(policy, tmp_path, "onnx,json", source=tmp_path / "student.safetensors")
    make()
    good = (tmp_path / "student.onnx").read_bytes()
    (tmp_path / "student.onnx").write_bytes(good[:100])
    assert make().kept.tolist() == [False, True]
    assert (tmp_path / "student.onnx").read_bytes() == good


def test_what_differs_is_not_written(policy, tmp_path, monkeypatch):
    "A converter that swaps two gates leaves the old file as it was"
    (tmp_path / "student.onnx").write_bytes(b"old")
    right = onnx_target.gates
    monkeypatch.setattr(onnx_target, "gates", lambda p: right(p) | {"W_r": right(p)["W_z"], "W_z": right(p)["W_r"]})
    with pytest.raises(ExportError, match="student.onnx' is not this policy"): export_file(policy, "onnx", tmp_path / "student.onnx")
    assert (tmp_path / "student.onnx").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_package_names_the_extra(policy, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}, which is not installed: pip install 'raptor-nb\[export\]' \(written: h5, json\)"):
        export(policy, tmp_path, "onnx,sequence,h5,json")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"student.{e}{m}" for e in ("h5", "json") for m in ("", ".manifest.json")]


def test_missing_tensorflow_or_compiler_leaves_the_other_targets(policy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ModuleNotFoundError, match=r"export to TFLite needs tensorflow, which is not installed: pip install 'raptor-nb\[tflite\]' \(in a clone: make tflite\); running a C header needs a C compiler, and none is installed: install gcc or clang, or name one with CC=... \(written: json\)"):
        export(policy, tmp_path, "tflite,tflite_int8,c,json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.json", "student.json.manifest.json"]


def _nan():
    policy = RaptorPolicy()
    with torch.no_grad(): policy.gru.gru.weight_ih_l0[0, 0] = float("nan")
    return policy


def _foreign(folder):
    h = onnx.helper
    value = lambda name: h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
    onnx.save(h.make_model(h.make_graph([h.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")]), opset_imports=[h.make_opsetid("", 17)], ir_version=8), folder / "foreign.onnx")
    return OnnxPolicy(folder / "foreign.onnx")


def _written(policy, target, folder):
    export_file(policy, target, folder / f"p{TARGETS[target][0]}")
    return folder / f"p{TARGETS[target][0]}"


def _changed(policy, folder, change):
    data = json.loads(_written(policy, "json", folder).read_text())
    change(data)
    return _file(folder, "p.json", json.dumps(data).encode())


def _file(folder, name, data):
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize("act, error, message", [
    pytest.param(lambda d, p: load_policy(d / "student.safetensors"), FileNotFoundError, "there is no student '.*student.safetensors'; make it with: papermill nbs/04_distill.ipynb", id="missing-student"),
    pytest.param(lambda d, p: load_policy(_file(d, "p.onnx", b"x")), ExportError, "is exported already", id="export-of-an-export"),
    pytest.param(lambda d, p: load_policy(_file(d, "p.safetensors", b"\0" * 30)), PolicyError, "p.safetensors", id="student-corrupt"),
    pytest.param(lambda d, p: load_policy(_file(d, "p.h5", b"\x89HDF" + b"\0" * 30)), PolicyError, "is not a readable HDF5 file", id="student-truncated-hdf5"),
    pytest.param(lambda d, p: parse_targets("onnx,tflit"), ExportError, "target 'tflit' is unknown; choose from onnx, sequence, tflite, tflite_float16, tflite_int8, c, h5, json, or all", id="unknown-target"),
    pytest.param(lambda d, p: parse_targets(""), ExportError, "target '' is unknown", id="no-target"),
    pytest.param(lambda d, p: export_file(_nan(), "onnx", d / "p.onnx"), ExportError, "gru.gru.weight_ih_l0 holds 1 values that are not finite", id="nan-weights-onnx"),
    pytest.param(lambda d, p: export_file(_nan(), "h5", d / "p.h5"), ExportError, "gru.gru.weight_ih_l0 holds 1 values that are not finite", id="nan-weights-hdf5"),
    pytest.param(lambda d, p: export_file(Teachers(1), "onnx", d / "p.onnx"), ExportError, "cannot export a Teachers; it must be a RaptorPolicy", id="export-of-teachers"),
    pytest.param(lambda d, p: export_file(p, "onnx", _file(d, "file", b"x") / "p.onnx"), OSError, "cannot write '.*p.onnx'", id="export-unwritable-folder"),
    pytest.param(lambda d, p: export_file(p, "h5", _file(d, "file", b"x") / "p.h5"), OSError, "cannot write '.*p.h5'", id="export-unwritable-folder-hdf5"),
    pytest.param(lambda d, p: OnnxPolicy(d / "p.onnx"), FileNotFoundError, "there is no ONNX file '.*p.onnx'; make it with: papermill nbs/05_export.ipynb", id="missing-onnx"),
    pytest.param(lambda d, p: OnnxPolicy(_file(d, "p.onnx", b"")), ExportError, "p.onnx' is not a readable ONNX file", id="onnx-empty"),
    pytest.param(lambda d, p: OnnxPolicy(_file(d, "p.onnx", onnx_model(p).SerializeToString()[:5000])), ExportError, "p.onnx' is not a readable ONNX file", id="onnx-truncated"),
    pytest.param(lambda d, p: OnnxPolicy(_file(d, "p.onnx", b"{}")), ExportError, "p.onnx' is not a readable ONNX file", id="onnx-other-type"),
    pytest.param(lambda d, p: _foreign(d), ExportError, "is another network: it has x of 1 dimensions, y of 1 dimensions; it must take observation and hidden_in", id="onnx-foreign"),
    pytest.param(lambda d, p: OnnxPolicy(_written(p, "sequence", d)), ExportError, "is another network: it has observation of 3 dimensions", id="onnx-sequence-as-step"),
    pytest.param(lambda d, p: verify(d / "p.pt", p), ExportError, "its suffix is '.pt'; it must be one of .onnx, .tflite, .h, .json, .h5, .hdf5", id="verify-unknown-suffix"),
    pytest.param(lambda d, p: load_policy(_file(d, "p.json", b"{}")), ExportError, "is exported already", id="export-of-json"),
    pytest.param(lambda d, p: load_policy(d), ExportError, "there is no checkpoint in the folder", id="export-of-an-empty-folder"),
    pytest.param(lambda d, p: load_policy(Checkpoints(d / "c").save(1, {"actors": {"w1": torch.zeros(2)}})), ExportError, r"is a checkpoint without a student \(it holds actors\); give one of 04_distill", id="checkpoint-of-teachers"),
    pytest.param(lambda d, p: load_policy(Checkpoints(d / "c").save(1, {"student": {"input_layer.linear.weight": torch.zeros(2, 3)}})), ExportError, "is a checkpoint without a student", id="checkpoint-of-another-network"),
    pytest.param(lambda d, p: export_file(_nan(), "c", d / "p.h"), ExportError, "gru.gru.weight_ih_l0 holds 1 values that are not finite", id="nan-weights-c"),
    pytest.param(lambda d, p: export_file(_nan(), "json", d / "p.json"), ExportError, "gru.gru.weight_ih_l0 holds 1 values that are not finite", id="nan-weights-json"),
    pytest.param(lambda d, p: export_file(p, "c", _file(d, "file", b"x") / "p.h"), OSError, "cannot write '.*p.h'", id="export-unwritable-folder-c"),
    pytest.param(lambda d, p: JsonPolicy(d / "p.json"), FileNotFoundError, "there is no JSON file", id="missing-json"),
    pytest.param(lambda d, p: JsonPolicy(_file(d, "p.json", b'{"format": "raptor')), ExportError, "p.json' is not JSON; it may be truncated", id="json-truncated"),
    pytest.param(lambda d, p: JsonPolicy(_file(d, "p.json", b"\xff\xfe")), ExportError, "p.json' is not JSON", id="json-binary"),
    pytest.param(lambda d, p: JsonPolicy(_file(d, "p.json", b"[1, 2]")), ExportError, "p.json' is other JSON; its format must be 'raptor_nb policy 1'", id="json-foreign"),
    pytest.param(lambda d, p: JsonPolicy(_changed(p, d, lambda j: j["layers"].pop())), ExportError, "has layers that do not fit together", id="json-layer-missing"),
    pytest.param(lambda d, p: JsonPolicy(_changed(p, d, lambda j: j["layers"][1]["biases_input"].pop())), ExportError, "has layers that do not fit together .*size mismatch for gru.gru.bias_ih_l0", id="json-wrong-dimensions"),
    pytest.param(lambda d, p: JsonPolicy(_changed(p, d, lambda j: j["layers"][2]["biases"].__setitem__(0, float("nan")))), ExportError, "output_layer.linear.bias holds 1 values that are not finite", id="json-nan-weights"),
    pytest.param(lambda d, p: verify(RaptorPolicy(hidden_dim=8), p), ExportError, r"has \(observed, hidden, action\) values \(22, 8, 4\); the policy has \(22, 16, 4\)", id="verify-other-size"),
])
def test_bad_input(tmp_path, policy, act, error, message):
    before = set(tmp_path.iterdir())
    with pytest.raises(error, match=message) as caught: act(tmp_path, policy)
    assert "\n" not in str(caught.value)
    assert not [p for p in set(tmp_path.iterdir()) - before if p.name.startswith(".")], "nothing half-written"


@pytest.mark.parametrize("observation, message", [
    pytest.param(np.zeros((2, 21), np.float32), r"observation has shape \(2, 21\)", id="onnx-observation-shape"),
    pytest.param(np.full((2, 22), np.nan, np.float32), "observation holds nan", id="onnx-observation-nan"),
    pytest.param(np.zeros((2, 22), int), "must be floating point", id="onnx-observation-dtype"),
    pytest.param(np.zeros((3, 22), np.float32), "holds 3 drones but the hidden state 2", id="onnx-number-of-drones"),
])
def test_bad_observation(files, observation, message):
    flyer = OnnxPolicy(files / "student.onnx")
    flyer.reset(2)
    with pytest.raises(PolicyError, match=message): flyer.evaluate_step(observation)
