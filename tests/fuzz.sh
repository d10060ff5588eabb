#!/usr/bin/env bash
# Searches with libFuzzer for bytes that a reader of checkvalve cannot take. Needs a C++ compiler (g++) for libFuzzer itself.
#
#   tests/fuzz.sh                    every target for 60 s
#   tests/fuzz.sh SECONDS            every target for so long
#   tests/fuzz.sh SECONDS TARGET...  only these
#   tests/fuzz.sh 0 TARGET FILE...   gives the target these files, to see a finding again
#
# What it learns stays in tests/fuzz/corpus, findings in tests/fuzz/findings. Ends with 1 when there is one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/fuzz"
case ${1:-} in -h | --help)
  sed -n '2,/^set /p' ../fuzz.sh | sed -n 's/^# \{0,1\}//p'
  exit 0
  ;;
esac
seconds=${1:-60}
[ $# -eq 0 ] || shift
files=()
if [ "$seconds" -eq 0 ]; then
  targets=("${1:?a target}")
  files=("${@:2}")
else
  targets=("$@")
  [ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n 's/.*Target { name: "\([a-z]*\)".*/\1/p' ../src/fuzz.rs)
fi

# The counters that libFuzzer follows. They are plain code generation options, so that no nightly toolchain is needed.
flags="-Cpasses=sancov-module"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  flags+=" -Cllvm-args=-sanitizer-coverage-$option"
done
host=$(rustc -vV | sed -n 's/^host: //p')
# The same versions of everything as the daemons have.
cp ../../Cargo.lock Cargo.lock
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../../target/fuzz} RUSTFLAGS="${RUSTFLAGS:-} $flags" \
  cargo build --release --quiet --target "$host"
search=${CARGO_TARGET_DIR:-$PWD/../../target/fuzz}/$host/release/checkvalve-fuzz

found=0
for target in "${targets[@]}"; do
  export CHECKVALVE_FUZZ_TARGET=$target
  if [ "$seconds" -eq 0 ]; then
    "$search" "${files[@]}" || found=1
    continue
  fi
  mkdir -p "corpus/$target" findings
  CHECKVALVE_FUZZ_SEEDS=$PWD/corpus/$target "$search" 2>findings/log
  echo "== $target"
  "$search" -max_total_time="$seconds" -max_len=16384 -timeout=20 -rss_limit_mb=2048 \
    -artifact_prefix="findings/$target-" "corpus/$target" >findings/log 2>&1 || found=1
  grep -E '^==.*ERROR|panicked|Test unit|DONE' findings/log || tail -n 5 findings/log
done
exit "$found"
