#!/bin/sh
# Sets up the Python commands of this package on the board, trt-hspan and hspan-jetson: a virtual environment in the
# folder venv beside this file. It sees the system's packages, because TensorRT's Python module is one of JetPack's.
# hspan-upscale and libhspan_runtime.so need nothing of it.
#   ./install.sh
# pip fetches numpy, onnx and the like; its PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER take them from a folder instead.
set -eu

root=$(dirname "$(readlink -f "$0")")
python=${PYTHON:-python3}
fail() {
  echo "install.sh: error: $1" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "$python: not found; run: sudo apt install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$("$python" --version) is too old; name Python 3.10 or later by PYTHON"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "python3-venv is missing; run: sudo apt install python3-venv"
[ -w "$root" ] || fail "$root: no permission to write here; run: sudo $root/install.sh"
set -- "$root"/wheels/trt_hspan-*.whl
[ -f "$1" ] || fail "$root/wheels: contains no trt_hspan wheel; unpack the package again"

# The environment of an earlier run stands aside until the new one is whole.
if [ -d "$root/venv.old" ]; then
  rm -rf "$root/venv"
elif [ -d "$root/venv" ]; then
  mv "$root/venv" "$root/venv.old"
fi
complete=
finish() {
  if [ -z "$complete" ]; then
    rm -rf "$root/venv"
    [ ! -d "$root/venv.old" ] || mv "$root/venv.old" "$root/venv"
  fi
}
trap finish EXIT
trap 'exit 1' INT TERM
"$python" -m venv --system-site-packages "$root/venv"
pip_install() { "$root/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip_install "$1" || fail "pip cannot install $(basename "$1"); look at the network, or name a folder of wheels by PIP_FIND_LINKS"
complete=yes
rm -rf "$root/venv.old"

# What Python needs beyond the wheel's own requirements to build and to run engines. Its absence is a warning and no error:
# hspan-upscale runs without either.
warn() { echo "install.sh: warning: $1" >&2; }
has() { "$root/venv/bin/python" -c "import $1" 2>/dev/null; }
has tensorrt ||
  warn "TensorRT's Python module is missing, so engines cannot be built; run: sudo apt install python3-libnvinfer"
if ! has pycuda; then
  echo "install.sh: building pycuda (minutes on a small board)"
  (
    export PATH="$PATH:/usr/local/cuda/bin" CUDA_ROOT="${CUDA_ROOT:-/usr/local/cuda}"
    pip_install "$1[jetson]"
  ) ||
    warn "pycuda could not be built, so engines run in hspan-upscale only; run: sudo apt install nvidia-jetpack python3-dev g++, then $root/install.sh again"
fi
echo "install.sh: $root/bin/trt-hspan and $root/bin/hspan-jetson are ready"
