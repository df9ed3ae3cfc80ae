#!/usr/bin/env bash
# Generates the Python stubs of the contract into the folder given.
set -euo pipefail
out=$1
mkdir -p "$out"
bin=.venv-proto/bin
"$bin/python" -m grpc_tools.protoc -I protos \
  --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  protos/kvdepot/v1/*.proto
