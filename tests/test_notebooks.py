"The lessons of every notebook hold for the exported library; without exports it runs whole"
import subprocess
import sys
from pathlib import Path

import pytest

from lessons import ROOT

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb")
                   if ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize("notebook", NOTEBOOKS,
                         ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_lessons_hold(notebook):
    command = [sys.executable, Path(__file__).with_name("lessons.py"), notebook]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
