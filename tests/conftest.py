"`pytest --bad-input=docs/bad_input.md` writes what the tests of bad input were told, as a table for the documentation"
import re
from pathlib import Path

import pytest

ABOUT = re.compile(r"bad|refused|unwritable|missing|no_space|sentence")
TITLES = dict(config="Settings and parameters", records="Files, checkpoints, devices", drones="Drones", policy="Policies and weights", environment="Flying",
              flight="Flying", native="Native engine", sac="Soft actor-critic", pretrain="Teachers", distill="Student", epochs="Student", export="Export", targets="Export", evaluate="Evaluation", pipeline="Stages", understand="Understanding", commands="Commands", fly="The page that flies")


def title(item): return TITLES.get(item.path.stem.removeprefix("test_")) # None: mistakes of whoever writes the documentation


def pytest_addoption(parser):
    parser.addoption("--bad-input", metavar="FILE", help="write the table of bad inputs and their messages")
    parser.addoption("--no-skips", action="store_true", help="a test that would be skipped fails, and says what is missing: for a machine that has everything")


def pytest_configure(config):
    if config.getoption("--bad-input"): config.pluginmanager.register(Table(Path(config.getoption("--bad-input"))), "bad-input-table")
    if config.getoption("--no-skips"): config.pluginmanager.register(NoSkips(), "no-skips")


class NoSkips:
    "What is skipped, a test or a whole file, fails with the reason that it gave; an expected failure stays what it is"

    def judge(self, report, name):
        if not report.skipped or hasattr(report, "wasxfail"): return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{name} was not run, and --no-skips lets nothing be left out: {reason.removeprefix('Skipped: ')}"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item):
        report = yield
        self.judge(report, item.nodeid)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self, collector):
        report = yield
        self.judge(report, collector.nodeid)
        return report


class Table:
    def __init__(self, path): self.path, self.rows, self.item = path, {}, None

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        self.item, leave = item, pytest.RaisesExc.__exit__
        def __exit__(raises, kind, error, trace):
            ok = leave(raises, kind, error, trace)
            if ok and error is not None and title(item) and ABOUT.search(item.originalname): self.rows.setdefault(item.nodeid, (item, type(error).__name__, str(error)))
            return ok
        pytest.RaisesExc.__exit__ = __exit__
        yield
        pytest.RaisesExc.__exit__ = leave

    def pytest_sessionfinish(self, session):
        parts = {}
        for item, kind, text in self.rows.values():
            name = item.callspec.id if hasattr(item, "callspec") else re.sub(r"^test_", "", item.originalname).replace("_", "-")
            text = re.sub(r"(/[^\s'\"]*?)?/(pytest-of-|tmp)[^\s'\"]*/", ".../", text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
            text = re.sub(r"process \d+ on [\w.-]+", "process 4711 on host", text)
            text = text if len(text) < 400 else text[:400] + " ..."
            parts.setdefault(title(item), []).append(f"| {name} | {text} | `{kind}` |")
        lines = ["# Bad input", "", f"What {len(self.rows)} mistakes are answered with. The table is written by the tests that make them: `make bad-input`.", ""]
        for heading, rows in parts.items(): lines += [f"## {heading}", "", "| mistake | answer | |", "| --- | --- | --- |", *sorted(set(rows)), ""]
        self.path.write_text("\n".join(lines), encoding="utf-8")
