#!/bin/sh
# Starts Triton on this model repository. Further options of tritonserver may follow on the command line.
#   TRITONSERVER   the program, when it is not on PATH
#   PLUGIN_WIRING  flag (the default): the TensorRT backend opens the plugin library;
#                  preload: the loader does, for programs that take no such flag
#   ADMIN_KEY      value of the header "admin-key" that model control, trace, logging and shared memory want; random
#                  when not given
set -eu
here=$$(cd "$$(dirname "$$0")" && pwd)
(cd "$$here" && sha256sum --check --quiet --strict SHA256SUMS) ||
  { echo "start.sh: $$here: files are not those that were exported; export the repository again" >&2; exit 1; }
if [ -f "$$here/$version_file" ]; then
  python3 - "$$(cat "$$here/$version_file")" << 'END' || exit 1
import ctypes
import sys

needed = sys.argv[1]
name = f"libnvinfer.so.{needed.split('.')[0]}"
try:
    library = ctypes.CDLL(name)
    parts = ("Major", "Minor", "Patch", "Build")
    actual = ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)
except (OSError, AttributeError) as error:
    print(f"start.sh: the engines need TensorRT {needed}; {name} cannot be asked for its version: {error}", file=sys.stderr)
    sys.exit(0)
numbers = [[int(part) for part in version.split(".")] for version in (needed, actual)]
runs_with_later = $or_later  # as version-compatible engines do
if any(a != b for a, b in zip(*numbers)) and not (runs_with_later and numbers[1] > numbers[0]):
    sys.exit(
        f"start.sh: the engines were built with TensorRT {needed}, {name} here is {actual}; "
        "build them inside this image, or start from an image with their TensorRT"
    )
END
fi
key=$${ADMIN_KEY:-$$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
plugin="$$here/$plugin"
if [ -f "$$plugin" ]; then
  case "$${PLUGIN_WIRING:-flag}:$$here" in
    preload:*[:\ ]* | flag:*\;*)
      echo "start.sh: $$here: this path would be taken apart on the way to TensorRT; move the folder" >&2
      exit 2 ;;
  esac
  case "$${PLUGIN_WIRING:-flag}" in
    flag) set -- --backend-config="tensorrt,plugins=$$plugin" "$$@" ;;
    preload) export LD_PRELOAD="$$plugin:$nvinfer$${LD_PRELOAD:+:$$LD_PRELOAD}" ;;
    *) echo "start.sh: PLUGIN_WIRING is $$PLUGIN_WIRING, expected flag or preload" >&2; exit 2 ;;
  esac
fi
exec "$${TRITONSERVER:-tritonserver}" \
  --model-repository="$$here" \
  --model-control-mode=poll --repository-poll-secs=5 \
$backend_options  --disable-auto-complete-config \
  --strict-readiness=true \
  --exit-timeout-secs=$exit_seconds \
  --log-format=ISO8601 \
  --http-restricted-api="model-repository,trace,logging,shared-memory:admin-key=$$key" \
  --grpc-restricted-protocol="model-repository,trace,logging,shared-memory:admin-key=$$key" \
  "$$@"
