#!/usr/bin/env bash
# Fill .whl/ with what a GPU machine with torch and transformers lacks, for CPython 3.12 on x86-64 Linux.
#   tests/gpu/fetch_wheels.sh
# Name and version of each are fixed: two runs bring the same files. Under 20 MB, or it fails.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3} limit=$((20 << 20))
platforms=()
for version in 2_34 2_31 2_28 2_27 2_24 2_17 2_12 2_5; do platforms+=(--platform "manylinux_${version}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64 --platform any)

rm -rf .whl && mkdir .whl
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest .whl \
  --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]}" \
  --requirement tests/gpu/wheels.txt
size=$(du -sb .whl | cut -f1)
[ "$size" -lt "$limit" ] || { echo ".whl/ has $size bytes, more than $limit" >&2 && exit 1; }
echo "$(ls .whl | wc -l) wheels, $size bytes"
"$PYTHON" tests/gpu/check_wheels.py .whl
