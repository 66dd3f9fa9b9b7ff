"The lessons of every notebook hold for the exported library too"
import subprocess, sys
from pathlib import Path

import pytest

from lessons import ROOT, module_of

NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts and module_of(p)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_lessons_hold_for_the_library(notebook):
    done = subprocess.run([sys.executable, Path(__file__).with_name("lessons.py"), notebook], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
