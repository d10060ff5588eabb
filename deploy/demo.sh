#!/usr/bin/env bash
# The pair at work on this machine, with nothing configured: two real daemons, a lossy one-way link between them, a real
# tree through it, an install hook on the far side, and the proof that it arrived exactly.
#
#   deploy/demo.sh [--loss PERCENT] [--megabytes N] [--link KIND] [--keep]
#
#   --loss PERCENT    datagrams that the link loses at random (2)
#   --megabytes N     size of the generated file beside this repository's own files (200)
#   --link KIND       root: a veth pair between two network namespaces, the way back dropped in the kernel
#                     user: the same in a user namespace, without being root
#                     relay: loopback through a small lossy relay, where no namespaces can be had
#                     (the first of these that works here)
#   --keep            leave the directory with both sides' files behind
#
# Ctrl-C ends it at any time and leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin:/sbin

loss=2 megabytes=200 keep='' kind=''
while [ $# -gt 0 ]; do
  case $1 in
    --loss) loss=${2:?} && shift ;;
    --megabytes) megabytes=${2:?} && shift ;;
    --link) kind=${2:?} && shift ;;
    --keep) keep=1 ;;
    -h | --help) sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p' && exit 0 ;;
    *) echo "unknown option $1; see --help" >&2 && exit 64 ;;
  esac
  shift
done
case $kind in '' | root | user | relay) ;; *) echo "--link is root, user or relay" >&2 && exit 64 ;; esac
per_mille=$(awk -v loss="$loss" 'BEGIN { print int(loss * 10) }')

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' off=$'\e[0m'; else bold='' dim='' green='' red='' off=''; fi
step() { printf '\n%s%s%s\n' "$bold" "$*" "$off"; }
say() { printf '  %s\n' "$*"; }
good() { printf '  %s✓%s %s\n' "$green" "$off" "$*"; }
fail() { printf '\n  %s✗ %s%s\n' "$red" "$*" "$off" >&2; show_logs >&2; exit 1; }
show_logs() { for side in low high; do [ -s "${work:-/nonexistent}/$side/log" ] && { echo "--- $side/log"; tail -n 20 "$work/$side/log"; }; done; true; }

# 1. Build. Inside the user namespace of step 2 there is no network to fetch crates over, so this comes first.
target=${CARGO_TARGET_DIR:-target}
if [ -z "${CHECKVALVE_DEMO_INSIDE:-}" ]; then
  step "Building (release; the first time takes some minutes)"
  cargo build --release --locked --quiet --package checkvalve-sender --package checkvalve-receiver --package checkvalve-tests --bins
  say "$("$target/release/checkvalve-sender" --version), $("$target/release/checkvalve-receiver" --version)"
fi
bin=$(cd "$target/release" && pwd)

# 2. The best link that can be had here.
can_link() { # namespaces, and rules on what leaves an interface: both must work, not only exist
  command -v ip >/dev/null && command -v nft >/dev/null && ip netns add "cv-$$-probe" 2>/dev/null || return 1
  local works=''
  ip netns exec "cv-$$-probe" nft \
    'table netdev probe { chain out { type filter hook egress device "lo" priority 0; counter drop; }; }' 2>/dev/null && works=1
  ip netns del "cv-$$-probe"
  [ -n "$works" ]
}
can_unshare() { unshare --user --map-root-user --net --mount true 2>/dev/null; }
inside=${CHECKVALVE_DEMO_INSIDE:-}
if [ -n "$inside" ]; then
  can_link && kind=user || kind=relay
elif [ "${kind:-root}" = root ] && [ "$(id -u)" -eq 0 ] && can_link; then
  kind=root
elif [ "${kind:-user}" = user ] && can_unshare; then
  # A user namespace of our own, with a /run where `ip netns` may write.
  export CHECKVALVE_DEMO_INSIDE=1
  # shellcheck disable=SC2016
  exec unshare --user --map-root-user --net --mount sh -c 'mount -t tmpfs tmpfs /run && exec "$0" "$@"' \
    "$PWD/deploy/demo.sh" --loss "$loss" --megabytes "$megabytes" --link user ${keep:+--keep}
elif [ "${kind:-relay}" = relay ]; then
  kind=relay
else
  echo "a link of kind $kind cannot be had here" >&2 && exit 69
fi
[ -z "$inside" ] || [ "$kind" = user ] || ip link set lo up

work=$(mktemp -d "${TMPDIR:-/tmp}/checkvalve-demo.XXXXXX")
low_ns=cv-$$-low high_ns=cv-$$-high
pids=()
cleanup() {
  trap '' INT TERM
  [ ${#pids[@]} -eq 0 ] || { kill "${pids[@]}" 2>/dev/null; wait "${pids[@]}" 2>/dev/null; } || true
  if [ "$kind" != relay ]; then
    for ns in "$low_ns" "$high_ns"; do ip netns del "$ns" 2>/dev/null || true; done
  fi
  if [ -n "$keep" ]; then printf '\n  Everything is in %s\n' "$work"; else rm -rf "$work"; fi
}
trap cleanup EXIT
trap 'printf "\n  interrupted: cleaning up\n"; exit 130' INT TERM

mkdir -p "$work"/low/{spool/default,state,keys} "$work"/high/{inbox,quarantine,state,keys/trusted.d,releases}

case $kind in
  root | user)
    step "Link: two network namespaces, one way in the kernel, $loss % of all datagrams lost"
    from=10.77.0.1 to=10.77.0.2:7700
    in_low=(ip netns exec "$low_ns") in_high=(ip netns exec "$high_ns")
    ip netns add "$low_ns" && ip netns add "$high_ns"
    for ns in "$low_ns" "$high_ns"; do
      # shellcheck disable=SC2016
      ip netns exec "$ns" sh -c 'for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 >"$f"; done' 2>/dev/null || true
    done
    ip -n "$low_ns" link add diode0 type veth peer name diode0 netns "$high_ns"
    ip -n "$low_ns" address add $from/24 dev diode0
    ip -n "$high_ns" address add ${to%:*}/24 dev diode0
    ip -n "$high_ns" link set diode0 arp off up
    ip -n "$low_ns" link set diode0 up
    mac=$(ip -n "$high_ns" -o link show diode0 | sed -E 's/.*link\/ether ([0-9a-f:]+).*/\1/')
    ip -n "$low_ns" neighbour replace "${to%:*}" lladdr "$mac" dev diode0 nud permanent
    # One super-datagram of the sender would be lost as a whole; segmented here, each datagram is lost by itself.
    if command -v ethtool >/dev/null; then
      "${in_low[@]}" ethtool -K diode0 tx-udp-segmentation off generic-segmentation-offload off >/dev/null 2>&1 || true
    fi
    "${in_high[@]}" nft -f - <<NFT
table netdev checkvalve {
  counter lost { }
  chain in { type filter hook ingress device "diode0" priority 0; numgen random mod 1000 < $per_mille counter name lost drop; }
  chain out { type filter hook egress device "diode0" priority 0; counter drop; }
}
NFT
    say "sender   ${dim}$low_ns${off}  diode0 $from ${bold}══▶${off} diode0 ${to%:*}  ${dim}$high_ns${off}  receiver"
    say "the receiver's interface drops whatever it would transmit"
    destination=$to listen=$to
    ;;
  relay)
    step "Link: loopback through a one-way relay that loses $loss % (no namespaces to be had here)"
    in_low=() in_high=()
    port=$((20000 + $$ % 20000))
    destination=127.0.0.1:$port listen=127.0.0.1:$((port + 1))
    "$bin/checkvalve-relay" --from "$destination" --to "$listen" --loss-per-mille "$per_mille" >"$work/relay.log" 2>&1 &
    pids+=($!)
    say "sender ══▶ $destination relay ══▶ $listen receiver"
    ;;
esac

# 3. Keys: the link key is on both sides; the signing key stays low, its public half is trusted high.
step "Keys"
"$bin/checkvalve-sender" keygen link --out "$work/low/keys/link.key" >/dev/null
"$bin/checkvalve-sender" keygen signing --out "$work/low/keys/signing.key" >/dev/null
install -m 600 "$work/low/keys/link.key" "$work/high/keys/link.key"
cp "$work/low/keys/signing.key.pub" "$work/high/keys/trusted.d/demo.pub"
good "link key on both sides; signing key low, its public half trusted high"

# 4. Configs and daemons.
rate="900 Mbit/s"
[ "$kind" != relay ] || rate="300 Mbit/s"
cat >"$work/low/sender.toml" <<TOML
spool   = "$work/low/spool"
state   = "$work/low/state"
control = "$work/low/control.sock"
[channel.default]
priority = 0
[link]
destination = "$destination"
mtu  = 1500
rate = "$rate"
[fec]
repair = "$((per_mille / 5 + 5)) %"
[keys]
link    = "$work/low/keys/link.key"
signing = "$work/low/keys/signing.key"
TOML
cat >"$work/high/receiver.toml" <<TOML
inbox      = "$work/high/inbox"
quarantine = "$work/high/quarantine"
state      = "$work/high/state"
control    = "$work/high/control.sock"
[channel.default.hook]
install = "$work/high/hook"
[link]
listen = "$listen"
mtu    = 1500
[keys]
link    = "$work/high/keys/link.key"
trusted = "$work/high/keys/trusted.d"
TOML
cat >"$work/high/hook" <<HOOK
#!/bin/sh
export CHECKVALVE_DEMO_RELEASES='$work/high/releases'
exec '$PWD/deploy/hooks/install' "\$@" >>'$work/high/hook.log' 2>&1
HOOK
chmod +x "$work/high/hook"

step "Daemons"
"${in_high[@]}" "$bin/checkvalve-receiver" run --config "$work/high/receiver.toml" >"$work/high/log" 2>&1 &
receiver=$! && pids+=("$receiver")
"${in_low[@]}" "$bin/checkvalve-sender" run --config "$work/low/sender.toml" >"$work/low/log" 2>&1 &
sender=$! && pids+=("$sender")
low() { "$bin/checkvalve-sender" "$@" --config "$work/low/sender.toml"; }
high() { "$bin/checkvalve-receiver" "$@" --config "$work/high/receiver.toml"; }
for _ in $(seq 100); do
  kill -0 $sender $receiver 2>/dev/null || fail "a daemon ended at once"
  low status >/dev/null 2>&1 && high status >/dev/null 2>&1 && break
  sleep 0.1
done
low status >/dev/null || fail "the sender does not answer"
high status >/dev/null || fail "the receiver does not answer"
good "checkvalve-sender (pid $sender) and checkvalve-receiver (pid $receiver)"

# 5. A bundle: this repository's own files and a generated one, renamed into the spool.
step "Dropping a bundle: this repository's files and $megabytes MB of random bytes"
bundle=$work/low/release
mkdir "$bundle"
tar -c --exclude=./target --exclude=./.git --exclude=./.ci/cache . | tar -x -C "$bundle"
head -c "$((megabytes * 1000 * 1000))" /dev/urandom >"$bundle/random.bin"
listing() { (cd "$1" && find . -printf '%p|%y|%m|%T@|%l\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
listing "$bundle" >"$work/dropped.txt"
say "$(find "$bundle" -type f | wc -l) files, $(du -sh --apparent-size "$bundle" | cut -f1)"
mv "$bundle" "$work/low/spool/default/release"
started=$(date +%s%N)

# 6. Progress of both sides, as each of them tells it.
the_bundle() { tr -d ' \n' | sed -n 's/.*"bundles":\[\([^]]*\)\].*/\1/p'; }
field() { # field NAME JSON: its value, or nothing
  sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p" <<<"$2"
}
bar() { # bar SIDE PART WHOLE STATE
  local percent=0 width=40 filled
  [ "${3:-0}" -eq 0 ] || percent=$((${2:-0} * 100 / $3))
  filled=$((percent * width / 100))
  printf '  %-5s %s%s%s%s %3d %%  %-14s\n' "$1" "$green" "$(printf '%*s' $filled '' | tr ' ' '=')" "$off" \
    "$(printf '%*s' $((width - filled)) '' | tr ' ' '.')" "$percent" "$4"
}
shown='' low_state='' high_state=''
progress() {
  local low_now high_now low_bar high_bar
  # A daemon that Ctrl-C has just ended does not answer; the trap says the rest.
  low_now=$(low status --json 2>/dev/null | the_bundle) || true
  high_now=$(high status --json 2>/dev/null | the_bundle) || true
  low_state=$(field state "$low_now") high_state=$(field state "$high_now")
  case $low_state in
    transmitted) low_bar=$(bar low 1 1 transmitted) ;;
    *) low_bar=$(bar low "$(field blocks_sent "$low_now")" "$(field blocks "$low_now")" "${low_state:-claiming}") ;;
  esac
  case $high_state in
    installed | installing | complete) high_bar=$(bar high 1 1 "$high_state") ;;
    *) high_bar=$(bar high "$(field received "$high_now")" "$(field bytes "$high_now")" "${high_state:-nothing}") ;;
  esac
  if [ -t 1 ]; then
    [ -z "$shown" ] || printf '\e[2A'
    printf '%s\n%s\n' "$low_bar" "$high_bar"
  elif [ "$shown" != "$low_state $high_state" ]; then
    printf '%s\n%s\n' "$low_bar" "$high_bar"
  fi
  shown="$low_state $high_state"
}
while :; do
  progress
  case $high_state in
    installed) break ;;
    failed | quarantined | incomplete | rejected) fail "the bundle is $high_state" ;;
  esac
  kill -0 $sender $receiver 2>/dev/null || fail "a daemon ended"
  sleep 0.2
done
took=$((($(date +%s%N) - started) / 1000000))
good "installed $((took / 1000)).$(printf '%03d' $((took % 1000))) s after it was dropped"

step "What the hook said"
sed 's/^/  │ /' "$work/high/hook.log"

# 7. Proof, by the receiver and by someone who knows nothing of it.
step "Proof"
landed=$(echo "$work"/high/inbox/default/*/release)
high verify "$landed" >"$work/verify.log" 2>&1 || { cat "$work/verify.log"; fail "verify found a difference"; }
good "checkvalve-receiver verify: as signed"
listing "$landed" >"$work/landed.txt"
diff -q "$work/dropped.txt" "$work/landed.txt" >/dev/null || fail "the trees differ: $(diff "$work/dropped.txt" "$work/landed.txt" | head -n 5)"
good "names, modes, times, links and SHA-256 of all $(grep -c '|f|' "$work/landed.txt") files are those that were dropped"
if [ "$kind" != relay ]; then
  frames=$(ip -n "$high_ns" -s -o link show diode0 | sed -E 's/.*TX:[^\\]*\\ +[0-9]+ +([0-9]+) .*/\1/')
  received=$(ip -n "$high_ns" -s -o link show diode0 | sed -E 's/.*RX:[^\\]*\\ +[0-9]+ +([0-9]+) .*/\1/')
  lost=$("${in_high[@]}" nft list counter netdev checkvalve lost | grep -o 'packets [0-9]*' | cut -d' ' -f2)
  [ "$frames" = 0 ] || fail "the receiver's interface transmitted $frames frames"
  good "of $received datagrams the link lost $lost; the high side transmitted $frames frames"
fi
step "${green}Done.${off}"
say "Next: README.md, \"Two real hosts\"."
