#!/usr/bin/env bash
# Sets up the development environment: Debian packages that are missing, a virtual environment, Python packages.
# Called by make with PYTHON and VENV.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

missing=()
command -v c++ >/dev/null || missing+=(g++)
command -v "$PYTHON" >/dev/null || missing+=(python3)
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]}"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"
  else
    fail "missing Debian packages: run 'sudo apt-get install ${missing[*]}', then make again"
  fi
fi

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$("$PYTHON" --version) is too old: install Python 3.10 or later and run make PYTHON=python3.x"

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip=("$VENV/bin/python" -m pip --disable-pip-version-check --quiet)
say "installing Python packages into $VENV (the first time takes a few minutes)"
"${pip[@]}" install --constraint constraints.txt --editable '.[dev]'

# The plugin needs a CUDA compiler; NVIDIA ships one as wheels too.
if [ -z "${CUDACXX:-}" ] && ! command -v nvcc >/dev/null && [ ! -x /usr/local/cuda/bin/nvcc ]; then
  say "no CUDA toolkit found: installing the compiler's wheels"
  "${pip[@]}" install --constraint constraints.txt --editable '.[dev,nvcc]'
fi

# The accuracy report's page is tested in a browser, where there is one.
browser=$(command -v chromium chromium-browser google-chrome google-chrome-stable | head -n 1 || true)
if [ -z "$browser" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing chromium, in which the accuracy report is tested"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } ||
      say "chromium could not be installed: the tests of the report in a browser will be skipped"
  else
    say "no Chromium: the tests of the report in a browser will be skipped (sudo apt-get install chromium)"
  fi
fi

# The C++ runtime is built by its tests, where the headers of its libraries are.
absent=()
for pair in libpng-dev:png.h libjpeg-dev:jpeglib.h libssl-dev:openssl/evp.h nlohmann-json3-dev:nlohmann/json.hpp libcli11-dev:CLI/CLI.hpp; do
  [ -e "/usr/include/${pair#*:}" ] || absent+=("${pair%%:*}")
done
if [ "${#absent[@]}" -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${absent[*]}, which the C++ runtime is built with"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${absent[@]}" >/dev/null; } ||
      say "they could not be installed: the tests of the C++ runtime will be skipped"
  else
    say "the tests of the C++ runtime will be skipped (sudo apt-get install ${absent[*]})"
  fi
fi

bash scripts/setup_cross.sh
