#!/usr/bin/env bash
# What the suite does on this machine's GPU, within 8 minutes: scripts/gpu_check.sh; --help says more.
# On a CPU the same steps with a tiny model: scripts/gpu_check.sh --device cpu --small
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
