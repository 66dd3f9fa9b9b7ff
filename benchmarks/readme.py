"""The commands and programs of README.md and docs/quickstart.md, pasted in order into a fresh clone in a fresh home, and their seconds

python benchmarks/readme.py seconds.json                     # from nothing: l2f is compiled, about 30 minutes on two cores
python benchmarks/readme.py seconds.json --wheels ~/.cache/raptor_nb/wheels --skip 'make run'   # a few minutes

What is cloned is the last commit of this repository. pip takes the versions of requirements.lock.
"""
import argparse
import json
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = "README.md", "docs/quickstart.md"
ADDRESS = "https://github.com/raptor-nb/raptor_nb"   # of `git clone`, which gets this clone instead
SERVERS = {"make lab": r"http://\S+/lab\S*"}         # commands that stay, and what they print when they are ready
PATIENCE = 40 * 60                                   # s for one command


def blocks(page):
    "The blocks of a page in order: (language, text)"
    return re.findall(r"^```(bash|python)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def commands(text):
    "The commands of a block of bash: (what its comment says, the command)"
    said = ""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        command, _, comment = line.partition("#") if line.startswith("#") else (line, "", said)
        if not line.strip(): continue
        if line.startswith("#"): said = comment.strip()
        else:
            yield said, command.strip()
            said = ""


def pasted(page):
    "Everything that a reader of the page pastes, in order: (language, comment, text)"
    for language, text in blocks(page):
        if language == "python": yield language, "", text
        else: yield from (("bash", *command) for command in commands(text))


def fresh_home(folder, wheels):
    "The environment of somebody who has just arrived"
    home = folder / "home"
    home.mkdir()
    shutil.copy(ROOT / "requirements.lock", folder / "constraints.txt")
    keep = {k: v for k, v in os.environ.items() if not re.match(r"PYTHON|VIRTUAL_ENV|XDG_|COVERAGE|COV_|MAKE|MFLAGS|OMP_|IN_TEST|PYTEST", k)}
    path = [p for p in keep["PATH"].split(os.pathsep) if not (Path(p) / "activate").exists()]
    env = keep | dict(HOME=str(home), PATH=os.pathsep.join(path), PIP_CONSTRAINT=str(folder / "constraints.txt"), GIT_CONFIG_NOSYSTEM="1")
    if wheels: env["WHEELS"] = str(Path(wheels).expanduser().resolve())
    for name, value in {f"url.{ROOT}.insteadOf": ADDRESS, "safe.directory": "*"}.items():
        subprocess.run(["git", "config", "--global", name, value], env=env, check=True)
    return env


class Shell:
    "One bash that stops at the first command that fails; what it prints goes into a file"

    def __init__(self, folder, env):
        self.log = folder / "log.txt"
        read, write = os.pipe()
        self.answers = os.fdopen(read)
        with self.log.open("wb") as log:
            self.bash = subprocess.Popen(["bash", "-e"], cwd=folder, env=env, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                                         text=True, pass_fds=[write], start_new_session=True)
        os.close(write)
        self.done = write

    def paste(self, command):
        "Seconds that it took. Raises SystemExit with the last lines where it failed"
        start, before = time.perf_counter(), self.log.stat().st_size
        self.bash.stdin.write(f"{{ {command}\n}} </dev/null\npwd >&{self.done}\n")
        self.bash.stdin.flush()
        ready, _, _ = select.select([self.answers], [], [], PATIENCE)
        self.folder = self.answers.readline().strip() if ready else ""
        if not self.folder:
            why = "failed" if ready else f"is not done after {PATIENCE // 60} minutes"
            raise SystemExit(f"`{command}` {why}:\n{self.said(before)[-3000:]}")
        return time.perf_counter() - start

    def serve(self, command, ready):
        "Seconds until a server is ready, which is then stopped"
        start, before = time.perf_counter(), self.log.stat().st_size
        self.paste(f"set -m; {command} & server=$!")
        while not re.search(ready, self.said(before)):
            time.sleep(.2)
            if time.perf_counter() - start > 300: raise SystemExit(f"`{command}` is not ready after 5 minutes:\n{self.said(before)[-3000:]}")
        seconds = time.perf_counter() - start
        self.paste("kill -INT -- -$server; sleep 1; kill -TERM -- -$server 2>/dev/null || true; wait $server || true; set +m")
        return seconds

    def said(self, since): return self.log.read_bytes()[since:].decode(errors="replace")

    def close(self):
        if self.bash.poll() is None: os.killpg(self.bash.pid, signal.SIGTERM)
        self.bash.stdin.close()
        self.bash.wait()


def paste_page(page, folder, env, skip):
    "A row for each command and program of a page: its seconds, and what git then calls changed"
    folder.mkdir()
    shell, rows = Shell(folder, env), []
    try:
        for i, (language, comment, text) in enumerate(pasted(page)):
            if skip and re.search(skip, text): continue
            if language == "python":
                (folder / f"block{i}.py").write_text(text)
                command = f".venv/bin/python {folder}/block{i}.py"
            else: command = text
            before = shell.log.stat().st_size
            seconds = shell.serve(command, SERVERS[command]) if command in SERVERS else shell.paste(command)
            changed = subprocess.run(["git", "status", "--porcelain"], cwd=shell.folder, env=env, capture_output=True, text=True).stdout.splitlines()
            rows.append(dict(kind=language, text=text, says=comment, seconds=round(seconds, 1), changed=changed, printed=shell.said(before)[-1500:]))
            print(f"{page}: {seconds:6.1f} s  {text.splitlines()[-1]}", *changed, sep="\n  ", flush=True)
    finally: shell.close()
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", default="build/readme.json", help="for the seconds (default %(default)s)")
    parser.add_argument("--wheels", help="folder of a compiled l2f, as WHEELS of tools/setup.sh; without it l2f is compiled")
    parser.add_argument("--skip", default="", help="regular expression: commands that are left out")
    parser.add_argument("--pages", nargs="+", default=PAGES)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="readme-"))
    try:
        env = fresh_home(folder, given.wheels)
        rows = {page: paste_page(page, folder / Path(page).stem, env, given.skip) for page in given.pages}
    finally: shutil.rmtree(folder, ignore_errors=True)
    seconds = {page: round(sum(row["seconds"] for row in found), 1) for page, found in rows.items()}
    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(dict(seconds=seconds, wheels_at_hand=bool(given.wheels), pages=rows), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"all of it works: {seconds} s, in {out}")


if __name__ == "__main__": main()
