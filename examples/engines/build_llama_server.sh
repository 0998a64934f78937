#!/bin/sh
# Build llama.cpp's llama-server from the source package of llama-cpp-python on PyPI.
#
#   usage: build_llama_server.sh DEST        leaves DEST/bin/llama-server
#
# Takes four to eight minutes on two cores. If the binary exists, exits at once; if interrupted, leaves nothing
# behind. The build is small and quick, for tests and experiments: no GPU, little optimisation, no TLS, no web UI.
#
# Needs a C++ compiler, Python 3 with venv, and the network for PyPI. cmake and ninja come from PyPI if they
# are missing. PYTHON, CXX, CC, JOBS and TMPDIR are honoured.
set -eu

VERSION=0.3.36
SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
PYTHON=${PYTHON:-python3}
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)}

say() { printf '%s\n' "build_llama_server: $*" >&2; }
fail() { say "$*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

[ $# -eq 1 ] && [ -n "$1" ] || fail "usage: build_llama_server.sh DEST"
HERE=$(cd "$(dirname "$0")" && pwd)
DEST=$1
BINARY=$DEST/bin/llama-server
STAMP=$DEST/llama-cpp-python.version

if [ -x "$BINARY" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$VERSION" ]; then
  say "$BINARY is there already"
  exit 0
fi

has "${CXX:-c++}" || has g++ || fail "no C++ compiler: install g++ or clang++ (Debian, Ubuntu: apt-get install g++)"
has "$PYTHON" || fail "no $PYTHON: install Python 3, or name another one in PYTHON"

WORK=$(mktemp -d "${TMPDIR:-/tmp}/llama-server-build.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

"$PYTHON" -m venv "$WORK/venv" >"$WORK/venv.log" 2>&1 || {
  cat "$WORK/venv.log" >&2
  fail "$PYTHON cannot make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)"
}
slowly() { what=$1; shift; sh "$HERE/progress.sh" "build_llama_server: $what" "$@"; }
pip() { what=$1; shift; slowly "$what" "$WORK/venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if ! has cmake; then
  pip "no cmake on PATH: taking the one from PyPI" install cmake || fail "cmake could not be installed from PyPI: install it, or check the network"
fi
if ! has ninja && ! has make; then
  pip "no ninja and no make on PATH: taking ninja from PyPI" install ninja || fail "ninja could not be installed from PyPI: install it, or check the network"
fi
pip "fetching the sources, llama-cpp-python $VERSION" \
  download --no-deps --no-binary=llama-cpp-python --dest "$WORK" "llama-cpp-python==$VERSION" ||
  fail "the sources could not be fetched from PyPI: check the network and pip's index settings"
ARCHIVE=$WORK/llama_cpp_python-$VERSION.tar.gz
"$WORK/venv/bin/python" - "$ARCHIVE" "$SHA256" <<'PY' || fail "the archive is not the one that was expected: its SHA-256 differs"
import hashlib, sys
with open(sys.argv[1], "rb") as archive:
    sys.exit(hashlib.file_digest(archive, "sha256").hexdigest() != sys.argv[2])
PY
tar -xzf "$ARCHIVE" -C "$WORK" "llama_cpp_python-$VERSION/vendor/llama.cpp"
rm -f "$ARCHIVE"

# Only now: pip builds in a private environment, where the cmake of this one would not run.
PATH=$PATH:$WORK/venv/bin
if has ninja; then GENERATOR=Ninja; else GENERATOR='Unix Makefiles'; fi
slowly "configuring" \
  cmake -S "$WORK/llama_cpp_python-$VERSION/vendor/llama.cpp" -B "$WORK/build" -G "$GENERATOR" \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_FLAGS_RELEASE='-O2 -DNDEBUG' -DCMAKE_CXX_FLAGS_RELEASE='-O1 -DNDEBUG' \
    -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF || fail "the build could not be configured"
slowly "compiling with $JOBS jobs; four to eight minutes on two cores" \
  cmake --build "$WORK/build" --target llama-server --parallel "$JOBS" || fail "the build failed"
"$WORK/build/bin/llama-server" --version >/dev/null 2>&1 || fail "the new llama-server does not run on this machine"

# A rename inside one folder is atomic: nobody ever finds half a binary.
mkdir -p "$DEST/bin"
cp "$WORK/build/bin/llama-server" "$BINARY.$$"
mv -f "$BINARY.$$" "$BINARY"
printf '%s\n' "$VERSION" >"$STAMP"
say "$BINARY is ready"
