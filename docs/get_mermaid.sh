#!/bin/sh
# Get mermaid.min.js from npm.
#
#   usage: get_mermaid.sh FILE
set -eu
[ $# -eq 1 ] || { echo "usage: get_mermaid.sh FILE" >&2; exit 2; }
mkdir -p "$(dirname "$1")"
FOLDER=$(mktemp -d "$(dirname "$1")/get.XXXXXX")
trap 'rm -rf "$FOLDER"' EXIT

cd "$FOLDER"
npm pack --silent mermaid@12.3.0
tar -xzf mermaid-12.3.0.tgz package/dist/mermaid.min.js
mv package/dist/mermaid.min.js "$1"
