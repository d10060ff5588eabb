#!/usr/bin/env bash
# Measures the pair beside what this machine can do: builds the release programs and runs checkvalve-bench.
#
#   tests/bench.sh                          everything; figures also as JSON in target/bench.json
#   tests/bench.sh --quick all              a short run
#   tests/bench.sh link latency             only these parts; --help lists them
#
# tests/BENCH.md says what the figures mean. Needs root, ip, nft and ethtool.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --release --workspace --bins --locked --quiet
target="${CARGO_TARGET_DIR:-$PWD/target}"
export CHECKVALVE_BIN_DIR="$target/release"
[ $# -gt 0 ] || set -- all
exec "$target/release/checkvalve-bench" --out "$target/bench.json" "$@"
