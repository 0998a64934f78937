#!/bin/sh
# Serve a small model with vLLM on the CPUs of this machine, on loopback, under the name `tiny`.
#
#   usage: serve_vllm.sh PYTHON MODEL_DIR PORT [more of vLLM's arguments]
#
# PYTHON is that of an environment with vLLM: see install_vllm.sh. Ready in about half a minute; 3 GB of memory.
set -eu
PYTHON=$1 MODEL=$2 PORT=$3
shift 3
# No model hub, no statistics; no threads that spin on the cores of others.
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
  VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
# The command `vllm serve` does not start from the package for CPUs; the module does.
exec "$PYTHON" -m vllm.entrypoints.openai.api_server --model "$MODEL" --host 127.0.0.1 --port "$PORT" \
  --served-model-name tiny --dtype float32 --max-model-len 1024 --max-num-seqs 16 --enforce-eager \
  --scheduling-policy priority "$@"
