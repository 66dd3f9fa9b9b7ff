#!/usr/bin/env bash
# What tests, compiled files and the page use outside of Python, as packages of Debian and Ubuntu: `make tools`, and .ci/run.
#   tools/system.sh              installs what is missing of the list below
#   tools/system.sh PACKAGE ...  installs these
# As root, or with a sudo that asks for no password; anybody else is told what to install.
set -euo pipefail

# how one sees that it is here (a command, or a file), and the package that brings it
TOOLS='
g++                                g++
clang++                            clang
/usr/lib/llvm-*/lib/libomp.so      libomp-dev
wasm-ld                            lld
/usr/include/wasm32-wasi/stdio.h   wasi-libc
/usr/lib/llvm-*/lib/wasm32-wasi/libc++.a|/usr/lib/wasm32-wasi/libc++.a libc++-dev-wasm32
/usr/lib/llvm-*/lib/clang/*/lib/wasi/libclang_rt.builtins-wasm32.a libclang-rt-dev-wasm32
node                               nodejs
npm                                npm
chromium|google-chrome             chromium
chromedriver                       chromium-driver
arm-none-eabi-gcc                  gcc-arm-none-eabi
/usr/include/newlib/stdio.h        libnewlib-arm-none-eabi
qemu-system-arm                    qemu-system-arm
valgrind                           valgrind
kotlinc                            kotlin
slurmctld                          slurm-wlm
munged                             munge
'

say() { printf 'tools: %s\n' "$*"; }

here() {  # one of the commands or files of $1, separated by |
  local name
  for name in ${1//|/ }; do
    case $name in
      /*) compgen -G "$name" >/dev/null && return ;;
      *) command -v "$name" >/dev/null && return ;;
    esac
  done
  return 1
}

missing() {  # packages, in one line
  local sign package
  while read -r sign package; do
    [ -z "$sign" ] || here "$sign" || printf '%s ' "$package"
  done <<<"$TOOLS"
}

install() {
  local root=()
  if [ "$(id -u)" != 0 ]; then root=(sudo -n); fi
  command -v apt-get >/dev/null && "${root[@]}" true 2>/dev/null ||
    { say "not installed: $*; ask whoever may: apt-get install $*" >&2; return 1; }
  say "installing $*"
  apt() { "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@"; }
  apt install -y --no-install-recommends "$@" >/dev/null 2>&1 || { apt update && apt install -y --no-install-recommends "$@" >/dev/null; }   # the list of packages may be missing, or old
}

main() {
  if [ $# -gt 0 ]; then install "$@"; return; fi
  local packages
  read -ra packages <<<"$(missing)"
  [ ${#packages[@]} -gt 0 ] || { say "everything is here"; return; }
  install "${packages[@]}"
  read -ra packages <<<"$(missing)"
  [ ${#packages[@]} -eq 0 ] || { say "installed, and yet not found: ${packages[*]}" >&2; return 1; }
}
main "$@"
