#!/bin/sh
# A Python command of this package, the one whose name this file has, with the package's own libraries and programs.
set -eu
root=$(dirname "$(dirname "$(readlink -f "$0")")")
name=$(basename "$0")
if [ ! -x "$root/venv/bin/$name" ]; then
  echo "$name: error: $root/venv: not set up yet; run: $root/install.sh" >&2
  exit 1
fi
export PATH="$root/bin:$PATH"
export TRT_HSPAN_PLUGIN="${TRT_HSPAN_PLUGIN:-$root/lib/libhspan_plugin.so}"
export TRT_HSPAN_CPU_LIBRARY="${TRT_HSPAN_CPU_LIBRARY:-$root/lib/libhspan_cpu.so}"
exec "$root/venv/bin/$name" "$@"
