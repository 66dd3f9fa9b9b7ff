"Small stand-ins for the stages, and a way to execute them without a kernel"
import json, re
from pathlib import Path

import pytest

STAND_INS = Path(__file__).with_name("stand_ins")
STAGES = ("03_direct", "03_pretrain", "04_distill", "05_export", "06_evaluate")
PYTHON = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}


def cell(source, *tags):
    "A code cell without outputs"
    return {"cell_type": "code", "execution_count": None, "metadata": {"tags": list(tags)},
            "outputs": [], "source": source}


def write(path, *cells):
    "A notebook of these cells"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"id": f"cell{i}"} | c for i, c in enumerate(cells)]
    path.write_text(json.dumps({"cells": cells, "metadata": PYTHON, "nbformat": 4,
                                "nbformat_minor": 5}))
    return path


def stand_in(name, more=""):
    "The cells of a file in stand_ins/, which begin with `# %%` and their tag"
    text = (STAND_INS / f"{name}.py").read_text() + more
    parts = re.split(r"^# %%(.*)\n", text, flags=re.M)[1:]
    return [cell(source.strip(), *tag.split()) for tag, source in zip(parts[::2], parts[1::2])]


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with an empty working directory `work` and the stand-ins in `nbs`"
    for name in STAGES: write(tmp_path / f"nbs/{name}.ipynb", *stand_in(name))
    monkeypatch.setenv("RAPTOR_NB_NOTEBOOKS", str(tmp_path / "nbs"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def run_cells(job):
    "The cells of a notebook in this process, without outputs; -> the error, or None"
    names = {}
    for c in json.loads(Path(job["notebook"]).read_text())["cells"]:
        try: exec(c["source"], names)
        except Exception as e: return f"{type(e).__name__}: {str(e).splitlines()[0]}"
        if "parameters" in c["metadata"]["tags"]: names |= job["parameters"]


class Fake:
    "Executes in this process, in a moment, and keeps account"
    def __init__(self): self.jobs, self.given, self.fails, self.seconds = [], [], {}, 2.

    def __call__(self, job):
        name = Path(job["notebook"]).stem
        self.jobs.append(name)
        self.given.append(job["parameters"])
        error = self.fails.get(name) or run_cells(job)
        return dict(error=error, seconds=self.seconds, peak=10**9)
