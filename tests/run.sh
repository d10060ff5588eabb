#!/usr/bin/env bash
# Runs every test: unit and doc tests of each crate, then the process tests, which start the real daemons in network
# namespaces, then those of tests/peer, in Python. Installs what it needs where it can (root and apt-get; pip, into target/);
# a test that cannot run here is skipped by name.
#
#   tests/run.sh            everything
#   tests/run.sh --long     the same, with the attacks of tests/peer for a minute, some at a time
#   tests/run.sh WORD...    only the tests whose names contain one of the words, and scripts of tests/peer so named
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
long=()
[ "${1:-}" = --long ] && long=(--long) && shift

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

# The second implementation, against the vectors and against the real receiver: scripts of tests/peer.
peer_log="$work/peer.log"
: >"$peer_log"
venv() { # a virtual environment with what tests/peer needs; says why not and fails where that cannot be
  peer_venv="${CARGO_TARGET_DIR:-$PWD/target}/peer-venv"
  local wanted=tests/peer/requirements.txt
  command -v python3 >/dev/null || { echo "python3 is not installed"; return 1; }
  cmp -s "$wanted" "$peer_venv/requirements.txt" && return
  rm -rf "$peer_venv"
  if ! python3 -m venv "$peer_venv" >"$work/venv.log" 2>&1 && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    { apt-get install -y -q python3-venv || { apt-get update -q && apt-get install -y -q python3-venv; }; } >/dev/null 2>&1
    rm -rf "$peer_venv"
    python3 -m venv "$peer_venv" >"$work/venv.log" 2>&1
  fi
  [ -x "$peer_venv/bin/pip" ] || { echo "python3 -m venv fails (is python3-venv installed?)"; return 1; }
  "$peer_venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$wanted" >"$work/pip.log" 2>&1 ||
    { echo "pip cannot install $wanted: $(grep -m 1 ERROR "$work/pip.log" || tail -n 1 "$work/pip.log")"; return 1; }
  cp "$wanted" "$peer_venv/requirements.txt"
}
peer() { # peer SCRIPT ARGS...
  local script=$1 started=$SECONDS
  shift
  printf '\n== peer: %s\n' "$script"
  nice env PYTHONUNBUFFERED=1 CHECKVALVE_BIN="$CHECKVALVE_BIN_DIR" "$peer_venv/bin/python" "tests/peer/$script.py" "$@" 2>&1 | tee -a "$peer_log"
  [ "${PIPESTATUS[0]}" -eq 0 ] || { status=1; printf 'test %s ... FAILED\n' "peer/$script" >>"$log"; }
  printf -- '-- peer: %s: %d s\n' "$script" $((SECONDS - started))
}
scripts=()
for script in test_vectors test_sender test_receiver; do
  wanted=$([ $# -eq 0 ] && echo yes)
  for word in "$@"; do case peer/$script in *"$word"*) wanted=yes ;; esac; done
  [ -n "$wanted" ] && scripts+=("$script")
done
if [ ${#scripts[@]} -gt 0 ]; then
  if venv >"$work/no-venv"; then
    for script in "${scripts[@]}"; do
      case $script in
      test_receiver) peer "$script" ${long[@]+"${long[@]}"} ;;
      *) peer "$script" ;;
      esac
    done
  else
    for script in "${scripts[@]}"; do printf 'peer/%s: %s\n' "$script" "$(cat "$work/no-venv")"; done |
      tee "$work/skipped-scripts" | sed 's/^/SKIPPED: /'
  fi
fi

count() { awk -v word="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i == word ";") n += $(i - 1) } END { print n + 0 }' "$log"; }
peer_ran=$(awk '/^Ran [0-9]+ test/ { n += $2 } END { print n + 0 }' "$peer_log")
peer_count() { grep -E '^(OK|FAILED) \(' "$peer_log" | grep -oE "$1=[0-9]+" | awk -F = '{ n += $2 } END { print n + 0 }'; }
peer_failed=$(($(peer_count failures) + $(peer_count errors))) peer_skipped=$(peer_count skipped)
passed=$(($(count passed) + peer_ran - peer_failed - peer_skipped))
failed=$(($(count failed) + peer_failed)) ignored=$(($(count ignored) + peer_skipped))
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi # a test binary that did not build or died
skipped=$(sort -u "$CHECKVALVE_SKIPPED" | grep -c .)
passed=$((passed - skipped))
if [ -s "$work/skipped-scripts" ]; then # those were not counted at all
  skipped=$((skipped + $(grep -c . "$work/skipped-scripts")))
  cat "$work/skipped-scripts" >>"$CHECKVALVE_SKIPPED"
fi

if [ "$failed" -gt 0 ]; then
  printf '\nfailed:\n'
  { grep -E '^test .* \.\.\. FAILED|^error(\[|:)' "$log" | sed -E 's/^test (.*) \.\.\. FAILED/\1/'
    sed -n -E 's/^(FAIL|ERROR): ([^ ]+).*/peer: \2/p' "$peer_log"; } | sed 's/^/  /' | sort -u
fi
if [ "$skipped" -gt 0 ]; then
  printf '\nskipped:\n'
  sort -u "$CHECKVALVE_SKIPPED" | sed 's/^/  /'
fi
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" $((skipped + ignored))
[ "$failed" -eq 0 ] && [ "$status" -eq 0 ]
