#!/bin/sh
# Run a command that takes a while, and show its progress.
#
#   usage: progress.sh WHAT COMMAND…
#
# Prints WHAT, then the elapsed time and the last line of the command's output: in place on a terminal, otherwise a line
# every half minute. If the command fails, prints the end of its output. Exits with the command's status.
set -u
[ $# -ge 2 ] || { echo "usage: progress.sh WHAT COMMAND…" >&2; exit 2; }
WHAT=$1
shift

LOG=$(mktemp "${TMPDIR:-/tmp}/progress.XXXXXX") || exit 1
SHOWING=
trap '[ -z "$SHOWING" ] || kill -KILL "$SHOWING" 2>/dev/null; rm -f "$LOG"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -t 2 ]; then AT_TERMINAL=1 EVERY=1; else AT_TERMINAL= EVERY=30; fi
BEGAN=$(date +%s)

elapsed() { s=$(($(date +%s) - BEGAN)); printf '%d:%02d' $((s / 60)) $((s % 60)); }

show() {
  while sleep "$EVERY" >/dev/null 2>&1; do  # it outlives its parent, and must not hold a pipe open
    # Only what can be shown, of the last line that says something.
    last=$(tail -c 4000 "$LOG" | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 | LC_ALL=C tr -cd '[:print:]' | cut -c 1-60)
    if [ -n "$AT_TERMINAL" ]; then printf '\r\033[K  %s  %s' "$(elapsed)" "$last" >&2
    else printf '  %s  %s\n' "$(elapsed)" "$last" >&2; fi
  done
}

printf '%s\n' "$WHAT" >&2
show &
SHOWING=$!
"$@" >"$LOG" 2>&1
STATUS=$?
kill -KILL "$SHOWING" 2>/dev/null  # a TERM is lost where it comes before the subshell has dropped its traps
wait "$SHOWING" 2>/dev/null
SHOWING=
[ -z "$AT_TERMINAL" ] || printf '\r\033[K' >&2
if [ "$STATUS" -eq 0 ]; then
  printf '  done in %s\n' "$(elapsed)" >&2
else
  tail -n 40 "$LOG" >&2
  printf '  failed after %s; the last lines are above\n' "$(elapsed)" >&2
fi
exit "$STATUS"
