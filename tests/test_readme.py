"What README.md and docs/quickstart.md show works as pasted, and says how long it takes"
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_package import EXTRAS, wheel  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import readme  # noqa: E402

def programs(page): return [text for language, text in readme.blocks(page) if language == "python"]


PROGRAMS = {f"{Path(page).stem} {i}": text for page in readme.PAGES
            for i, text in enumerate(programs(page))}
DURATION = re.compile(r"\d+ (s|min)\b")


def numbers(text): return [float(x) for x in re.findall(r"-?\d+\.\d*(?:e-?\d+)?", text)]


@pytest.fixture(scope="module")
def printed(wheel, tmp_path_factory):  # noqa: F811
    "What a program prints in a process of its own, with the wheel's package and without extras"
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    hidden = f"import sys\nfor name in {EXTRAS}: sys.modules[name] = None\n"
    (site / "sitecustomize.py").write_text(hidden)
    where = "\nimport raptor_nb, sys; print(raptor_nb.__file__, file=sys.stderr)"

    def run(text):
        (site / "program.py").write_text(text + where)
        done = subprocess.run([sys.executable, site / "program.py"], cwd=site, capture_output=True,
                              text=True, env={"PATH": "", "PYTHONPATH": str(site)})
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith(str(site)), done.stderr
        return done.stdout
    return run


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_work_as_pasted_with_the_plain_install(printed, name):
    said = numbers(printed(PROGRAMS[name]))
    assert len(said) >= 8 and said[-1] < .02, "the last drone is not at its target"


def test_the_output_shown_is_what_is_printed(printed):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    program, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.S).groups()
    said = printed(program)
    words = lambda text: re.findall(r"[a-z_]+|True|False", text)
    assert words(said) == words(shown)
    assert numbers(said) == pytest.approx(numbers(shown), rel=1e-3, abs=1.1e-3)


@pytest.mark.parametrize("page", readme.PAGES)
def test_every_command_says_how_long_it_takes(page):
    found = {text: comment for language, comment, text in readme.pasted(page) if language == "bash"}
    assert len(found) > 5
    assert not [text for text, comment in found.items() if not DURATION.search(comment)]


def test_commands_are_cut_out_of_a_block():
    text = "# 5 s: this\na b \\\n  c && d  # no comment\n\n# 1 min\n# 2 min\ne\nf\n"
    want = [("5 s: this", "a b c && d  # no comment"), ("2 min", "e"), ("", "f")]
    assert list(readme.commands(text)) == want


def test_a_command_that_fails_is_named_with_its_last_lines(tmp_path):
    (tmp_path / "x").mkdir()
    shell = readme.Shell(tmp_path / "x", readme.fresh_home(tmp_path, None))
    try:
        assert shell.paste("cd .. && value=7") > 0 and shell.folder == str(tmp_path)
        shell.paste("[ $value = 7 ]")
        with pytest.raises(SystemExit, match=r"^`echo so; false` failed:\nso\n$"):
            shell.paste("echo so; false")
    finally: shell.close()


def test_a_server_is_waited_for_and_stopped(tmp_path):
    (tmp_path / "x").mkdir()
    shell = readme.Shell(tmp_path / "x", readme.fresh_home(tmp_path, None))
    try:
        seconds = shell.serve("(sleep .5; echo ready at http://here; sleep 600)", r"http://\S+")
        assert .4 < seconds < 60
        shell.paste("! kill -0 $server 2>/dev/null")
    finally: shell.close()


@pytest.mark.slow
def test_everything_but_training_works_when_pasted_into_a_fresh_clone(tmp_path):
    "What is committed, with the l2f that was compiled for this machine, in a few minutes"
    wheels = Path.home() / ".cache/raptor_nb/wheels"
    command = [sys.executable, ROOT / "benchmarks/readme.py", tmp_path / "seconds.json",
               "--wheels", wheels, "--skip", "make run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = json.loads((tmp_path / "seconds.json").read_text())["pages"]
    assert set(pages) == set(readme.PAGES)
    rows = [row for page in pages.values() for row in page]
    assert all(row["seconds"] >= 0 for row in rows)
    assert not [(row["text"], row["changed"]) for row in rows if row["changed"]]
