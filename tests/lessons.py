"""The lessons of a notebook against the exported module: python tests/lessons.py NOTEBOOK

Lessons are the cells that are not exported. nbdev_test (`make notebooks`) runs a notebook whole,
so what it exercises are the definitions in the notebook. Here the same lessons exercise
raptor_nb/*.py, which is what people import, and coverage sees it. A notebook that exports nothing
runs whole.
"""
import importlib
import re
import sys
from pathlib import Path

import nbdev.test

ROOT = Path(__file__).resolve().parents[1]


def module_of(notebook):
    "Name of the module that a notebook exports to, or None"
    name = re.search(r"#\|\s*default_exp\s+([\w.]+)", notebook.read_text(encoding="utf-8"))
    return name and f"raptor_nb.{name[1]}"


def run(notebook, skip_flags):
    passed, _ = nbdev.test.test_nb(notebook, skip_flags=skip_flags, basepath=ROOT)
    return 0 if passed else 1


def main(notebook):
    if not (name := module_of(notebook)): return run(notebook, ["notest"])
    module = importlib.import_module(name)

    class Shell(nbdev.test.CaptureShell):
        "nbdev's shell, in which the module's names are known already"
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.user_ns.update({k: v for k, v in vars(module).items() if not k.startswith("__")})

    nbdev.test.CaptureShell = Shell
    return run(notebook, ["notest", "export", "exporti", "exports"])


if __name__ == "__main__": sys.exit(main(Path(sys.argv[1]).resolve()))
