"`pytest --no-skips`: a test that would be skipped fails, for a machine that has everything"
import pytest


def pytest_addoption(parser):
    about = "a test that would be skipped fails, and says what is missing"
    parser.addoption("--no-skips", action="store_true", help=about)


def pytest_configure(config):
    if config.getoption("--no-skips"): config.pluginmanager.register(NoSkips(), "no-skips")


class NoSkips:
    "What is skipped, a test or a whole file, fails with the reason that it gave"

    def judge(self, report, name):
        "Changes a skip into a failure; an expected failure stays what it is"
        if not report.skipped or hasattr(report, "wasxfail"): return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{name} was not run, and --no-skips lets nothing be left out: " \
                          f"{reason.removeprefix('Skipped: ')}"

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
