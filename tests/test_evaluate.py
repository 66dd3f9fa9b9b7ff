"The evaluation as a stage: who flies what, what is kept, and which policies can be named"
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raptor_nb.drones import sample_fleet, sample_split, save_fleet
from raptor_nb.policy import EvaluationError, PolicyError, RaptorPolicy, Teachers, load_policy
from raptor_nb.sim.rollout import evaluate

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
ROOT = Path(__file__).resolve().parents[1]
MINE = """
import numpy as np
def still(observation): return np.zeros((len(observation), 4), np.float32)
number = 3
"""


def test_a_policy_by_name(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    table = evaluate(load_policy("mine:still"), sample_split("tests", 12), steps=3)
    assert table.steps.tolist() == [3] * 12
    with pytest.raises(EvaluationError, match="'mine:number' is a int; it must be a function"):
        load_policy("mine:number")


@pytest.mark.parametrize("name, error, message", [
    ("missing.safetensors", FileNotFoundError,
     "there is no student '.*'; make it with: papermill nbs/03_direct.ipynb"),
    ("onnx.onnx", PolicyError, "is exported already; give the .safetensors or .h5 file"),
    ("corrupt.safetensors", ValueError, "corrupt.safetensors")],
    ids=["missing-student", "onnx-as-weights", "corrupt-student"])
def test_files_that_are_no_policies_are_refused(tmp_path, name, error, message):
    if not name.startswith("missing"): (tmp_path / name).write_bytes(b"\0" * 30)
    with pytest.raises(error, match=message): load_policy(tmp_path / name)


@pytest.mark.parametrize("name, message", [
    ("raptor_nb.policy:hover", "there is no policy 'raptor_nb.policy:hover'"),
    ("no_such_module:hover", "name it as module:function")])
def test_names_that_are_no_policies_are_refused(name, message):
    with pytest.raises(EvaluationError, match=message): load_policy(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A run with a student and teachers that learned nothing"
    run = tmp_path_factory.mktemp("evaluate") / "runs/here"
    RaptorPolicy.published().save(run / "student.safetensors")
    save_fleet(sample_fleet(4), run / "drones.json")
    Teachers(4).save(run / "teachers.safetensors")
    return run


def papermill(stage, folder, *parameters):
    "Executes a stage from elsewhere; -> what it printed"
    notebook, where = ROOT / f"nbs/{stage}.ipynb", folder.parents[1]
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "papermill", notebook, "out.ipynb", "-k", "python3",
               "-p", "output_dir", "runs/here", *parameters]
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = json.loads((where / "out.ipynb").read_text())["cells"]
    return "".join("".join(o.get("text", "")) for c in cells for o in c.get("outputs", ()))


FIGURES = {"comparison.png", "conditions.png", "fleet_map.png", "flights.png",
           "noise_and_delay.png", "survival_and_steady_error.png"}


@pytest.mark.slow
def test_export_and_evaluation_as_stages(folder):
    "From another folder, twice: the second time everything is kept"
    pytest.importorskip("papermill", reason="needs the extra raptor-nb[lab]")
    for kept in (False, True):
        for stage in (["05_export"], ["06_evaluate", "-p", "test_drones", "6"]):
            printed = papermill(stage[0], folder, *stage[1:])
            assert ("was kept" in printed) == kept
    files = {"student.onnx", "student.h5", "flights.parquet", "flights.parquet.manifest.json",
             "verdict.json", "figures"}
    assert {p.name for p in folder.iterdir()} >= files
    assert {p.name for p in (folder / "figures").iterdir()} == FIGURES
    rows = {r["name"]: r for r in json.loads((folder / "verdict.json").read_text())}
    teachers, student = (rows[f"return of {p}, 4 training drones, clean"]["value"]
                         for p in ("teachers", "student"))
    assert teachers < 0 < student
    assert rows["survival of student, 6 held-out drones, clean"]["required"] == .9
    assert len(pd.read_parquet(folder / "flights.parquet")) == 2 * 4 * 6 + 3 * 2 * 6 + 4 * 4
