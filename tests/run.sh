#!/usr/bin/env bash
# Runs every test: unit and doc tests of each crate, then the process tests, which start the real daemons in network
# namespaces. Installs what it needs where it can (root and apt-get); a test that cannot run here is skipped by name.
#
#   tests/run.sh            everything
#   tests/run.sh WORD...    only the tests whose names contain one of the words
#
# The last line is "N passed, N failed, N skipped".
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

case ${1:-} in -h | --help)
  sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p'
  exit 0
  ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Tests that cannot run append "NAME: REASON" here and return; cargo counts them as passed, this script does not.
export CHECKVALVE_SKIPPED="$work/skipped"
: >"$CHECKVALVE_SKIPPED"

install_tools() { # namespaces need iproute2, loss and the one-way rule need nftables, segmentation switches ethtool, bad disks e2fsprogs
  local missing=() pair
  for pair in ip:iproute2 nft:nftables ethtool:ethtool systemd-analyze:systemd mkfs.ext4:e2fsprogs; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]} (install them, or run as root on Debian or Ubuntu); tests that need them are skipped"
    return
  fi
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q "${missing[@]}" >"$work/apt.log" 2>&1 ||
    { apt-get update -q && apt-get install -y -q "${missing[@]}"; } >"$work/apt.log" 2>&1 ||
    { echo "could not install ${missing[*]}:"; tail -n 5 "$work/apt.log"; }
}

PATH="$PATH:/usr/sbin:/sbin"
install_tools

echo "== build the daemons (release)"
cargo build --release --locked --quiet --package checkvalve-sender --package checkvalve-receiver --package checkvalve-tests --bins ||
  { echo "the build failed"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
export CHECKVALVE_BIN_DIR="${CARGO_TARGET_DIR:-$PWD/target}/release"

log="$work/log"
status=0
run() { # run TITLE CARGO-ARGS...: output to the screen and to the log that is counted from
  local title=$1 started=$SECONDS
  shift
  printf '\n== %s\n' "$title"
  cargo test --locked --no-fail-fast "$@" 2>&1 | tee -a "$log"
  [ "${PIPESTATUS[0]}" -eq 0 ] || status=1
  printf -- '-- %s: %d s\n' "$title" $((SECONDS - started))
}
# What is shipped is what is tested: all in the release profile, and the same packages each time, so that less is built twice.
run "unit tests" --release --workspace --lib --bins -- "$@"
run "doc tests" --release --workspace --doc -- "$@"
# One process test at a time: each measures time, memory and loss on a machine that may have only two cores.
run "process tests" --release --workspace --test '*' -- --test-threads=1 "$@"

count() { awk -v word="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i == word ";") n += $(i - 1) } END { print n + 0 }' "$log"; }
passed=$(count passed) failed=$(count failed) ignored=$(count ignored)
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi # a test binary that did not build or died
skipped=$(sort -u "$CHECKVALVE_SKIPPED" | grep -c .)
passed=$((passed - skipped))

if [ "$failed" -gt 0 ]; then
  printf '\nfailed:\n'
  grep -E '^test .* \.\.\. FAILED|^error(\[|:)' "$log" | sed -E 's/^test (.*) \.\.\. FAILED/\1/; s/^/  /' | sort -u
fi
if [ "$skipped" -gt 0 ]; then
  printf '\nskipped:\n'
  sort -u "$CHECKVALVE_SKIPPED" | sed 's/^/  /'
fi
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" $((skipped + ignored))
[ "$failed" -eq 0 ] && [ "$status" -eq 0 ]
