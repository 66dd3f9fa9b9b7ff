"""Run the lessons of a notebook, the cells that are not exported, against the exported module: python tests/lessons.py NOTEBOOK

nbdev_test runs a notebook whole, so what it exercises are the definitions in the notebook. Here the same lessons exercise
raptor_nb/*.py, which is what people import, and coverage sees it.
"""
import importlib, re, sys
from pathlib import Path

import nbdev.test

ROOT = Path(__file__).resolve().parents[1]


def module_of(notebook):
    "Name of the module that a notebook exports to, or None"
    name = re.search(r"#\|\s*default_exp\s+([\w.]+)", notebook.read_text(encoding="utf-8"))
    return name and f"raptor_nb.{name[1]}"


def main(notebook):
    module = importlib.import_module(module_of(notebook))

    class Shell(nbdev.test.CaptureShell):
        "nbdev's shell, in which the module's names are known already"
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.user_ns.update({k: v for k, v in vars(module).items() if not k.startswith("__")})

    nbdev.test.CaptureShell = Shell
    passed, _ = nbdev.test.test_nb(notebook, skip_flags=["notest", "export", "exporti", "exports"], basepath=ROOT)
    return 0 if passed else 1


if __name__ == "__main__": sys.exit(main(Path(sys.argv[1]).resolve()))
