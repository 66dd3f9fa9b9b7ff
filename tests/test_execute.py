"core.execute: what a notebook's execution leaves, shows and costs, and that no kernel outlives it"
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

import raptor_nb
from raptor_nb.core.execute import Log, execute, move_into_place
from stages import cell, write

LIBRARY = str(Path(raptor_nb.__file__).parents[1])
SLEEPING = "import os, pathlib, subprocess, sys, time\n" \
           "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n" \
           "pathlib.Path('pids').write_text(f'{os.getpid()} {child.pid}')\n" \
           "time.sleep(300)"
PROGRAM = """
import json, signal, sys
from raptor_nb.core.execute import execute
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
try: print(execute(json.loads(sys.argv[1])))
except KeyboardInterrupt: sys.exit(130)
"""


def task(folder, *sources, **parameters):
    "A notebook in `folder`, and the task to execute it"
    notebook = write(folder / "a.ipynb", cell("n = 1", "parameters"), *map(cell, sources))
    return dict(notebook=str(notebook), copy=str(folder / "copy.ipynb"), parameters=parameters,
                cwd=str(folder))


def test_what_an_execution_leaves(tmp_path, capfd):
    done = execute(task(tmp_path, "import os\nprint('n is', n, os.getcwd())", n=3))
    assert done["error"] is None and done["peak"] > 2e7 and done["seconds"] > 0
    assert f"    n is 3 {tmp_path}" in capfd.readouterr().out
    assert "n is 3" in (tmp_path / "copy.ipynb").read_text()


@pytest.mark.parametrize("source, error", [
    pytest.param("raise ValueError('no luck\\nat all')", "ValueError: no luck", id="raises"),
    pytest.param("import os; os._exit(9)", "its kernel died, as happens when memory runs out",
                 id="dies"),
])
def test_a_failure_is_one_line(tmp_path, source, error):
    assert execute(task(tmp_path, source))["error"] == error
    assert (tmp_path / "copy.ipynb").is_file()


def test_papermill_missing_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    said = r"executing a notebook needs papermill, .* pip install 'raptor-nb\[lab\]'"
    with pytest.raises(ModuleNotFoundError, match=said): execute(task(tmp_path, "1"))


def test_the_environment_is_left_as_it_was(tmp_path):
    before = dict(os.environ)
    execute(task(tmp_path, "import raptor_nb"))
    assert dict(os.environ) == before


def alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError: return False


def wait(condition, seconds=60):
    "Waits for it; -> whether it came true"
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(.1)
    return condition()


@pytest.fixture
def running(tmp_path):
    "A program that executes a notebook which sleeps; and the processes below it"
    job = json.dumps(task(tmp_path, SLEEPING))
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, job], stdin=subprocess.DEVNULL,
                               env=os.environ | {"PYTHONPATH": LIBRARY})
    pids = tmp_path / "pids"
    assert wait(lambda: pids.is_file() and pids.read_text())
    kernel, child = map(int, pids.read_text().split())
    yield program, kernel, child
    program.kill()
    program.wait()
    for pid in (kernel, child):
        if alive(pid): os.kill(pid, signal.SIGKILL)


def test_ctrl_c_stops_the_kernel_and_what_it_started(running):
    program, kernel, child = running
    program.send_signal(signal.SIGINT)
    assert program.wait(60) == 130
    assert wait(lambda: not alive(kernel) and not alive(child), 5)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_kernel_does_not_outlive_its_parent(running, signum):
    program, kernel, _ = running
    program.send_signal(signum)
    program.wait(60)
    assert wait(lambda: not alive(kernel), 30)


def test_log_thins_progress_and_cuts_long_texts(capsys):
    show = Log(every=1000)
    def update(text, **data):
        content = {"data": {"text/plain": text} | data, "transient": {"display_id": "a"}}
        show({"msg_type": "update_display_data", "content": content})
    def stream(name, text):
        show({"msg_type": "stream", "content": {"name": name, "text": text}})
    for i in range(5): update(f"update {i}")
    stream("stdout", "a\nb\nc\nd\n")
    stream("stderr", "a warning")
    update("<Figure>", **{"image/png": ""})
    said = capsys.readouterr().out
    assert said.split("\n") == ["    update 0", "    a", "    ... (3 more lines)", ""]


def test_a_copy_names_no_folder_of_this_machine(tmp_path):
    copy, report = tmp_path / "a.running.ipynb", tmp_path / "report/a.ipynb"
    copy.write_text(f"{tmp_path}/x {LIBRARY}/y {Path.home()}/z {copy.name}")
    move_into_place(copy, report, str(tmp_path))
    assert report.read_text() == "x y ~/z a.ipynb" and not copy.exists()
