#!/usr/bin/env bash
# Fuzzes the readers of the C++ runtime: each target for SECONDS_EACH (60). Findings stay in build/fuzz/TARGET/.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'fuzz: %s\n' "$*" >&2; }

clang=$(compgen -c clang++ | grep -E '^clang\+\+(-[0-9]+)?$' | sort -V | tail -1 || true)
if [ -z "$clang" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing clang"
    apt-get install -y -qq --no-install-recommends clang-14 libclang-rt-14-dev >/dev/null
    clang=clang++-14
  else
    say "clang is missing: run 'sudo apt-get install clang libclang-rt-14-dev', then make fuzz again"
    exit 1
  fi
fi

sanitizers="-fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=undefined -g"
cmake=$(command -v .venv/bin/cmake || command -v cmake)
"$cmake" -S . -B build/fuzz -DCMAKE_CXX_COMPILER="$clang" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS="$sanitizers" \
  -DHSPAN_BUILD_PLUGIN=OFF -DHSPAN_BUILD_RUNTIME=ON -DHSPAN_BUILD_FUZZERS=ON -DHSPAN_TENSORRT_LIBRARY=OFF >/dev/null
"$cmake" --build build/fuzz --parallel 2 --target fuzz_manifest fuzz_picture fuzz_exif >/dev/null

.venv/bin/python tests/cpp/fuzz/seeds.py build/fuzz
for target in manifest picture exif; do
  say "$target for ${SECONDS_EACH:-60} s"
  (cd "build/fuzz/$target" &&
    "../tests/cpp/fuzz/fuzz_$target" -max_total_time="${SECONDS_EACH:-60}" -rss_limit_mb=4096 -timeout=20 -print_final_stats=1 \
      corpus 2>log.txt) || { tail -40 "build/fuzz/$target/log.txt" >&2; say "$target: found something, see build/fuzz/$target"; exit 1; }
  grep 'number_of_executed_units' "build/fuzz/$target/log.txt" >&2
done
say "nothing found"
