#!/usr/bin/env bash
# Makes .venv with everything the project needs. Called by `make`; run again it does nothing until a lock changes.
#   PYTHON     which interpreter to use (default: the first of python3.11, python3.12, python3 that is 3.11 or 3.12)
#   PIP_ARGS   further arguments for pip install, for example an index of PyTorch's CPU builds
#   WARM       a profile whose compiled physics is made ready while l2f compiles on the other core (`make run` does so)
#   WHEELS     where the compiled l2f is kept for the next clone (default ~/.cache/raptor_nb/wheels)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/.set-up
log=$venv/set-up.log
read -ra pip_args <<< "${PIP_ARGS:-}"

say() { printf 'set-up: %s\n' "$*"; }
fail() { printf 'set-up: %s\n' "$*" >&2; exit 1; }

job=""   # the compilation beside the downloads: it ends with this program, also where that fails
trap '[ -z "$job" ] || kill -- "-$job" 2>/dev/null || true' EXIT

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true; }
suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

find_python() {
  local candidate seen=""
  for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
    if suits "$candidate"; then command -v "$candidate"; return; fi
    [ -n "$(version_of "$candidate")" ] && seen="$seen, $candidate is $(version_of "$candidate")"
  done
  fail "Python 3.11 or 3.12 is needed${seen:-, and none was found}: install python3.11, or name one with make PYTHON=/path/to/python3.11"
}

apt_install() {  # names of Debian packages; only as root, so that nobody's machine is changed without being asked
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  say "installing $* with apt-get"
  tools/system.sh "$@" >>"$log" 2>&1
}

has_headers() { "$1" -c 'import sysconfig, pathlib, sys; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())'; }

make_venv() {
  local python name
  python=$(find_python)
  name=python$(version_of "$python" | cut -d. -f1,2)
  "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install "$name-venv" ||
    fail "$python cannot make virtual environments: install the package $name-venv and try again"
  say "making $venv with $python ($(version_of "$python"))"
  "$python" -m venv "$venv"
}

need_headers() {  # of the Python in .venv, which may be older than this set-up
  local name
  name=python$(version_of "$venv/bin/python" | cut -d. -f1,2)
  has_headers "$venv/bin/python" || apt_install "$name-dev" ||
    fail "the headers of $name are missing and l2f is compiled against them: install the package $name-dev and try again"
}

# l2f is compiled with -march=native: a wheel belongs to a Python and a kind of processor
wheel_folder() {
  local flags key
  flags=$(grep -m1 -iE '^(flags|features)' /proc/cpuinfo 2>/dev/null || sysctl -n machdep.cpu 2>/dev/null || true)
  key=$(printf '%s %s %s' "$(uname -sm)" "$("$venv/bin/python" -VV)" "$flags" | cksum | cut -d' ' -f1)
  printf '%s/%s-%s' "${WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/raptor_nb/wheels}" "$(uname -m)" "$key"
}

compile_l2f() {  # into the folder named first
  local folder=$1 building
  if command -v clang++ >/dev/null; then export CC=clang CXX=clang++; say "compiling l2f with clang, 3 to 7 minutes"
  elif command -v g++ >/dev/null; then export CC=gcc CXX=g++
    say "compiling l2f with g++, which takes about 20 minutes and up to 10 GB of memory; with clang it is 3 minutes (apt-get install clang libomp-dev)"
  else fail "l2f needs a C++ compiler: install clang and libomp-dev (or g++) and try again"; fi
  mkdir -p "$folder"
  building=$(mktemp -d "$folder/building.XXXXXX")
  "$venv/bin/pip" wheel -q --no-deps --no-cache-dir -w "$building" ${pip_args[@]+"${pip_args[@]}"} "$l2f" >>"$venv/l2f.log" 2>&1 ||
    { tail -n 20 "$venv/l2f.log" >&2; rm -rf "$building"; fail "l2f did not compile: the whole story is in $venv/l2f.log"; }
  mv "$building"/l2f-*.whl "$folder/"   # whole, or not at all
  rm -rf "$building"
}

find_or_compile_l2f() {
  ls "$1"/l2f-*.whl >/dev/null 2>&1 && { say "taking the compiled l2f of $1"; return; }
  [ "$(uname)" != Linux ] || { command -v clang++ >/dev/null && ls /usr/lib/llvm-*/lib/libomp.so >/dev/null 2>&1; } || apt_install clang libomp-dev || true
  compile_l2f "$1"
}

install_l2f() {
  "$venv/bin/pip" install -q --no-deps --force-reinstall "$1"/l2f-*.whl >>"$log" 2>&1 && "$venv/bin/python" -c 'import l2f' 2>>"$log"
}

install_hooks() {  # nbdev's, but with the commands of .venv, which is seldom activated when git calls them
  "$venv/bin/nbdev_install_hooks"
  printf '#!/bin/sh\n[ ! -x %s/bin/nbdev_trust ] || %s/bin/nbdev_trust\n' "$venv" "$venv" >.git/hooks/post-merge
  git config --local merge.nbdev-merge.driver "$venv/bin/nbdev_merge %O %A %B %P"
}

finished() { [ -x $venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$1" ]; }

main() {
  local key l2f wheels started=$SECONDS
  key=$(cat requirements.lock pyproject.toml settings.ini tools/setup.sh | cksum)
  finished "$key" && return
  mkdir -p .cache
  exec 9>.cache/set-up.lock
  if command -v flock >/dev/null; then flock 9; finished "$key" && return; fi   # another one was at it
  [ -x $venv/bin/python ] && suits $venv/bin/python || { rm -rf $venv; log=/dev/null make_venv; }
  rm -f $stamp; : >"$log"; : >"$venv/l2f.log"
  need_headers
  l2f=$(grep '^l2f==' requirements.lock)
  "$venv/bin/pip" install -q --disable-pip-version-check ${pip_args[@]+"${pip_args[@]}"} --upgrade pip==26.3 >>"$log" 2>&1 || fail "pip could not be brought up to date: see $log"

  wheels=$(wheel_folder)/${l2f/==/-}
  if ! "$venv/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('l2f') != '${l2f#l2f==}')" 2>/dev/null; then
    set -m   # a group of its own, so that all of it can be ended
    find_or_compile_l2f "$wheels" & job=$!
    set +m
  fi
  say "installing the packages of requirements.lock"
  grep -v '^l2f==' requirements.lock >$venv/packages.txt
  "$venv/bin/pip" install -q ${pip_args[@]+"${pip_args[@]}"} -r $venv/packages.txt >>"$log" 2>&1 ||
    { tail -n 5 "$log" >&2; fail "the packages could not be installed: the whole story is in $log"; }
  if [ -n "$job" ]; then
    if [ -n "${WARM:-}" ]; then
      say "meanwhile compiling the physics for the profile $WARM"
      "$venv/bin/python" -c 'import sys; from raptor_nb.learn.apg import warm; from raptor_nb.settings import load_config; warm(load_config(sys.argv[1]))' "$WARM" >>"$log" 2>&1 || say "that did not work, it is done later: see $log"
    fi
    wait "$job"
    install_l2f "$wheels" || { say "that l2f does not load here, compiling it again"; rm -rf "$wheels"; find_or_compile_l2f "$wheels"; install_l2f "$wheels"; } ||
      fail "the compiled l2f cannot be imported: see $log"
  fi
  "$venv/bin/pip" install -q --no-deps --no-build-isolation -e . >>"$log" 2>&1 || { tail -n 5 "$log" >&2; fail "raptor_nb itself could not be installed: see $log"; }
  if [ -d .git ]; then install_hooks >>"$log" 2>&1 || say "nbdev's git hooks could not be installed: see $log"; fi
  printf '%s\n' "$key" >$stamp
  say "done in $((SECONDS - started)) s"
}
main
