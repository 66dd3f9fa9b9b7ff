"tools/system.sh: what is installed, how, and what somebody hears who may not"
import subprocess
from pathlib import Path
from shutil import which

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools/system.sh"


@pytest.fixture
def machine(tmp_path):
    """A machine of our own: bash and little else. apt-get works once its list was updated, and
    writes down what it was asked"""
    log, updated = tmp_path / "asked", tmp_path / "updated"
    for name in ("bash", "env", "true", "cat", "touch"): (tmp_path / name).symlink_to(which(name))

    def command(name, *lines):
        (tmp_path / name).write_text("\n".join(["#!/bin/bash", *lines, ""]))
        (tmp_path / name).chmod(0o755)

    def run(user, *packages, sudo=None):
        command("id", f"echo {user}")
        command("apt-get", f'echo "$DEBIAN_FRONTEND $*" >> {log}',
                f'[[ "$*" != *update* ]] || touch {updated}', f"[ -e {updated} ]")
        if sudo: command("sudo", *sudo)
        done = subprocess.run(["bash", SCRIPT, *packages], capture_output=True, text=True,
                              env={"PATH": str(tmp_path)})
        asked = log.read_text().splitlines() if log.exists() else []
        return done, [(line.split()[0], line.split("=300 ")[1]) for line in asked]
    return run


PACKAGES = "valgrind", "qemu-system-arm"
INSTALL = ("noninteractive", "install -y --no-install-recommends valgrind qemu-system-arm")


def test_the_list_of_packages_is_updated_where_it_is_missing(machine):
    done, asked = machine(0, *PACKAGES)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tools: installing valgrind qemu-system-arm\n"
    assert asked == [INSTALL, ("noninteractive", "update"), INSTALL]
    assert machine(0, *PACKAGES)[1][3:] == [INSTALL], "only where it is missing"


def test_sudo_is_used_where_it_asks_for_no_password(machine):
    done, asked = machine(1000, *PACKAGES, sudo=['[ "$1" = -n ] && shift && exec "$@"'])
    assert done.returncode == 0 and asked[-1] == INSTALL, done.stderr


@pytest.mark.parametrize("sudo", [None, ["exit 1"]], ids=["no sudo", "sudo asks"])
def test_who_may_not_is_told_what_is_missing(machine, sudo):
    done, asked = machine(1000, sudo=sudo)
    assert done.returncode == 1 and not asked and done.stdout == ""
    said = done.stderr
    assert said.startswith("tools: not installed: g++ clang ") and said.count("\n") == 1
    assert "apt-get install g++ clang " in said
    assert "valgrind" in said and "chromium-driver" in said
