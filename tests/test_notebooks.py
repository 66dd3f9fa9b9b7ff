"The lessons of every notebook hold for the exported library; notebooks that export nothing run whole"
import subprocess, sys
from pathlib import Path

import pytest

from lessons import ROOT

NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_lessons_hold(notebook):
    done = subprocess.run([sys.executable, Path(__file__).with_name("lessons.py"), notebook], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
