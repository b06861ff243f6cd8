#!/usr/bin/env bash
# Installs the C++ compiler for 64-bit Arm, and qemu's user emulation, when that is possible without asking.
# `scripts/setup_cross.sh required` fails when the compiler is missing afterwards.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

missing=()
command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64-static >/dev/null || command -v qemu-aarch64 >/dev/null || missing+=(qemu-user-static)
[ "${#missing[@]}" -gt 0 ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  say "installing ${missing[*]}, for packages for Jetson"
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } ||
    say "${missing[*]} could not be installed: the tests for 64-bit Arm will be skipped"
else
  say "no ${missing[*]}: the tests for 64-bit Arm will be skipped (sudo apt-get install ${missing[*]})"
fi
if [ "${1:-}" = required ] && ! command -v aarch64-linux-gnu-g++ >/dev/null; then
  say "the C++ compiler for 64-bit Arm is missing: run 'sudo apt-get install g++-aarch64-linux-gnu', then make again"
  exit 1
fi
