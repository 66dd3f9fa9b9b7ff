"core.tracking: curves survive a kill, progress leaves one output"
import json, os, subprocess, sys

import numpy as np
import pandas as pd
import pytest

from raptor_nb.core.records import RecordError, WriteError
from raptor_nb.core.tracking import Live, Metrics, read_metrics


def metrics(folder): return Metrics(folder, tensorboard=False)


def lines(folder): return (folder / "metrics.jsonl").read_text().splitlines()


def test_values_of_a_step_share_a_row(tmp_path):
    with metrics(tmp_path) as m:
        m.log(0, loss=1/3)
        m.log(10, loss=2)
        m.log(10, ret=600.5)
        m.log(10, loss=.1)
        m.log(20, loss=.05)
    expected = pd.DataFrame({"step": [0, 10, 20], "loss": [1/3, .1, .05],
                             "ret": [np.nan, 600.5, np.nan]})
    pd.testing.assert_frame_equal(m.frame(), expected)
    pd.testing.assert_frame_equal(metrics(tmp_path).frame(), expected)


def test_values_are_in_the_file_at_once(tmp_path):
    m = metrics(tmp_path)
    m.log(1, a=2.)
    m.log(2, a=3.)
    assert lines(tmp_path) == ['{"step": 1, "a": 2.0}', '{"step": 2, "a": 3.0}']


def test_what_is_not_finite_is_kept(tmp_path):
    with metrics(tmp_path) as m: m.log(0, a=np.inf, b=np.nan)
    np.testing.assert_equal(metrics(tmp_path).frame().values, [[0, np.inf, np.nan]])


def test_going_back_drops_what_came_from_there_on(tmp_path):
    with metrics(tmp_path) as m:
        for step in range(0, 60, 10): m.log(step, loss=step)
    with metrics(tmp_path) as m: m.log(20, loss=-2)
    assert m.frame().values.tolist() == [[0, 0], [10, 10], [20, -2]]
    assert metrics(tmp_path).frame().values.tolist() == m.frame().values.tolist()


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    with metrics(tmp_path) as m: m.log(3, loss=.1)
    assert m.frame().values.tolist() == [[1, .5], [3, .1]]
    assert lines(tmp_path) == ['{"step": 1, "loss": 0.5}', '{"step": 3, "loss": 0.1}']


def test_nothing_logged_is_an_empty_table(tmp_path):
    assert list(metrics(tmp_path).frame().columns) == ["step"]


@pytest.mark.parametrize("line", [
    pytest.param('{"step": 0, "loss": "many"}', id="metrics-with-words"),
    pytest.param('{"a": 1}', id="metrics-without-a-step"),
    pytest.param("step,loss", id="metrics-as-a-table"),
    pytest.param("[1]", id="metrics-as-a-list"),
])
def test_bad_metrics(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "a": 1}}\n{line}\n')
    with pytest.raises(RecordError, match=r"metrics.jsonl', line 2: it must be JSON with a step"):
        read_metrics(path)


def test_unwritable_metrics(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="^cannot write .*file.*: (not a directory|file exists)"):
        metrics(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# --- TensorBoard

TWICE = """
import sys
from raptor_nb.core.tracking import Metrics
for begin, more in ((0, 0), (3, 100)):
    with Metrics(sys.argv[1]) as m:
        for step in range(begin, 6): m.log(step, loss=step + more)
assert 'tensorflow' not in sys.modules
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1] + '/tensorboard').Reload().Scalars('loss')
print([(e.step, e.value) for e in events])
"""


def test_tensorboard_sees_the_same_without_loading_tensorflow(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", TWICE, tmp_path], capture_output=True, text=True,
                          env=environment)
    expected = [(0, 0.), (1, 1.), (2, 2.), (3, 103.), (4, 104.), (5, 105.)]
    assert done.stdout.strip() == str(expected), done.stderr
    assert metrics(tmp_path).frame().loss.tolist() == [value for _, value in expected]


def test_without_tensorboard_metrics_still_reach_the_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with Metrics(tmp_path) as m:
        with pytest.warns(UserWarning, match="TensorBoard is not installed"): m.log(0, a=1)
        m.log(1, a=2)
    assert metrics(tmp_path).frame().a.tolist() == [1, 2]


# --- progress

def test_live_in_a_terminal_is_sparse(capsys):
    drawn = []
    with Live(terminal=1000) as live:
        for i in range(5): live.update(lambda i=i: drawn.append(i) or f"update {i}")
        assert drawn == [0]  # only when due
        live.update("now", force=True)
        live.update("last")
    assert capsys.readouterr().out == "update 0\nnow\nlast\n"


IN_A_NOTEBOOK = """
import matplotlib.pyplot as plt
from raptor_nb.core.tracking import Live
with Live(interval=0) as live:
    for i in range(5): live.update(f'update {i}')
with Live(interval=0) as live:
    for i in range(3):
        figure, axis = plt.subplots(figsize=(1, 1)); axis.plot([0, i]); live.update(figure)
"""


def test_live_in_a_notebook_leaves_one_output(tmp_path, monkeypatch):
    import papermill
    from stages import cell, write
    monkeypatch.delenv("MPLBACKEND", raising=False)   # the kernel has its own
    notebook, executed = write(tmp_path / "in.ipynb", cell(IN_A_NOTEBOOK)), tmp_path / "out.ipynb"
    papermill.execute_notebook(notebook, executed, progress_bar=False)
    outputs = json.loads(executed.read_text())["cells"][0]["outputs"]
    shown = [o["data"] for o in outputs if o["output_type"] == "display_data"]
    assert len(outputs) == len(shown) == 2
    assert "".join(shown[0]["text/plain"]) == "update 4" and "image/png" in shown[1]
