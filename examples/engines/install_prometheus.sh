#!/bin/sh
# Get Prometheus and promtool from Debian's (or Ubuntu's) package `prometheus`.
#
#   usage: install_prometheus.sh DEST        leaves DEST/bin/prometheus and DEST/bin/promtool
#
# Takes a few seconds and 100 MB. Installs nothing in the system, and needs no root: the package is fetched with this
# system's apt-get configuration, its signatures are checked, and it is unpacked. If the programs exist, exits at once;
# if interrupted, leaves nothing behind. For tests and experiments.
#
# Needs apt-get, dpkg-deb and the network for the package archive.
set -eu

say() { printf '%s\n' "install_prometheus: $*" >&2; }
fail() { say "$*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

[ $# -eq 1 ] && [ -n "$1" ] || fail "usage: install_prometheus.sh DEST"
DEST=$1
STAMP=$DEST/prometheus.version

if [ -x "$DEST/bin/prometheus" ] && [ -x "$DEST/bin/promtool" ] && [ -s "$STAMP" ]; then
  say "$DEST/bin/prometheus is there already"
  exit 0
fi

has apt-get && has dpkg-deb ||
  fail "no apt-get and dpkg-deb: get Prometheus as your system does, and name its program in PROMETHEUS"

WORK=$(mktemp -d "${TMPDIR:-/tmp}/install-prometheus.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
LOG=$WORK/log

download() { (cd "$WORK" && apt-get -qq -o APT::Sandbox::User=root "$@" download prometheus) >"$LOG" 2>&1; }

say "fetching the package prometheus: some seconds and 100 MB, longer where the lists of packages are old"
download || {
  # The lists of packages are missing or old. New ones go into a folder of our own, so that nobody has to be root.
  mkdir -p "$WORK/lists/partial" "$WORK/cache/archives/partial"
  set -- -o "Dir::State::lists=$WORK/lists" -o "Dir::Cache=$WORK/cache"
  apt-get -qq -o APT::Sandbox::User=root "$@" update >"$LOG" 2>&1 && download "$@"
} || {
  tail -n 20 "$LOG" >&2
  fail "the package could not be fetched; apt-get's last lines are above"
}

dpkg-deb -x "$WORK"/prometheus_*.deb "$WORK/package" || fail "the package could not be unpacked"
"$WORK/package/usr/bin/prometheus" --version >"$LOG" 2>&1 ||
  fail "the new prometheus does not run on this machine: $(cat "$LOG")"

# A rename inside one folder is atomic: nobody ever finds half a program.
mkdir -p "$DEST/bin"
for program in promtool prometheus; do
  cp "$WORK/package/usr/bin/$program" "$DEST/bin/$program.$$"
  mv -f "$DEST/bin/$program.$$" "$DEST/bin/$program"
done
dpkg-deb --field "$WORK"/prometheus_*.deb Version >"$STAMP"
say "$DEST/bin/prometheus is ready"
