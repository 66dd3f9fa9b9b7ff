"Where everything is installed nothing is skipped: what --no-skips says of each way to skip"
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
REASON = "reason='valgrind is not installed'"
WAYS = {
    "mark": f"@pytest.mark.skipif(True, {REASON})\ndef test_it(): pass",
    "call": f"def test_it(): pytest.skip({REASON})",
    "fixture": f"@pytest.fixture\ndef tool(): pytest.skip({REASON})\ndef test_it(tool): pass",
    "importorskip": f"def test_it(): pytest.importorskip('no_such_package', {REASON})",
    "file": f"pytest.importorskip('no_such_package', {REASON})\ndef test_it(): pass",
    "parameter": "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.skip("
                 f"{REASON}))])\ndef test_it(x): pass",
}
RAN = {
    "passes": "def test_it(): pass",
    "expected_failure": "@pytest.mark.xfail\ndef test_it(): assert False",
    "hypothesis": "from hypothesis import given, assume, strategies as st\n"
                  "@given(st.integers())\ndef test_it(x): assume(x % 2)",
}


@pytest.fixture(scope="module", params=[[], ["-p", "xdist", "-n", "2"]],
                ids=["one process", "two processes"])
def run(request, tmp_path_factory):
    "All of these in one folder, with our conftest.py"
    folder = tmp_path_factory.mktemp("suite")
    (folder / "pytest.ini").write_text("[pytest]\n")
    shutil.copy(TESTS / "conftest.py", folder)
    for name, code in (WAYS | RAN).items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n{code}\n")

    def start(*options):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                   "--continue-on-collection-errors", *request.param, *options]
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    return start


def test_a_skip_fails_and_says_what_is_missing(run):
    done = run("--no-skips")
    sentence = r"^test_(\w+)\.py\S* was not run, and --no-skips lets nothing be left out: " \
               r"valgrind is not installed$"
    told = re.findall(sentence, done.stdout, re.M)
    assert done.returncode == 1 and sorted(told) == sorted(WAYS), done.stdout
    last = done.stdout.splitlines()[-1]
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (\w+)", last)}
    assert "skipped" not in counts and counts["passed"] == 2 and counts["xfailed"] == 1


def test_without_it_a_skip_is_a_skip(run):
    done = run()
    assert done.returncode == 0 and f"{len(WAYS)} skipped" in done.stdout.splitlines()[-1]
