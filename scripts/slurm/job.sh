# Sourced by the batch scripts beside it: run_stage STAGE CONFIG [key=value ...] on all nodes of this job.
#
#   ALIGNMENT_HOME     the checkout; default the folder that the job was submitted from
#   PYTHON             default .venv/bin/python of the checkout
#   ACCELERATE_CONFIG  default configs/accelerate/multinode.yaml on several nodes, zero2.yaml on one
#   GPUS_PER_NODE      processes a node; default the GPUs that Slurm gave it, else 1
#   ALIGNMENT_REGISTRY the registry, in a folder that all nodes share
#
# A job that gets its warning (--signal in the batch script, or a preemption) saves a checkpoint, exits with 75 and is
# put back into the queue; it goes on from there when it is started again, as it does after a node has failed.

set -uo pipefail
home=${ALIGNMENT_HOME:-$SLURM_SUBMIT_DIR}
python=${PYTHON:-$home/.venv/bin/python}
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}"
# torch's launcher kills its workers half a minute after it was asked to end them: too soon for a large checkpoint.
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-280}
cd "$home" || exit 1

say() { echo "$(date '+%F %T') job ${SLURM_JOB_ID:-}: $*"; }

# exit_code FILE: the code in a run's exit.json, or nothing. A launcher turns every code but 0 into 1.
exit_code() {
  "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["code"])' "$1" 2>/dev/null
}

run_stage() {
  local stage=$1 plan run_dir='' warned='' first code step
  shift
  # USR1 is the warning before the time is over; TERM comes from Slurm when it wants the nodes, and from scancel.
  make_room() { [ -z "$run_dir" ] || { mkdir -p "$run_dir" && : >"$run_dir/PREEMPT"; }; }
  trap 'warned=1; say "asked to make room: a checkpoint at the next step"; make_room' USR1
  trap 'make_room' TERM
  # Mistakes show here, before the nodes start: 2 means that the config or data is wrong, and trying again won't help.
  plan=$("$python" -m "$stage" "$@" --dry-run) || return $?
  run_dir=$("$python" -c 'import json, os, sys; c = json.load(sys.stdin)["config"]
print(os.path.join(c["tracking"]["runs"], c["name"]))' <<<"$plan") || return 1
  if [ "$(exit_code "$run_dir/exit.json")" != 0 ]; then
    rm -f "$run_dir/exit.json" # of the start before, which this one would be taken for if it died early
  fi
  rm -f "$run_dir/PREEMPT" # likewise
  [ -z "$warned" ] || make_room

  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  first=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
  export STAGE=$stage MASTER=$first PORT=$((20000 + SLURM_JOB_ID % 12000)) # below what systems give to clients
  export PROCESSES=$((SLURM_NNODES * ${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}))
  local named=zero2
  [ "$SLURM_NNODES" -gt 1 ] && named=multinode
  export ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-$home/configs/accelerate/$named.yaml} python

  say "$stage on $SLURM_JOB_NODELIST, $PROCESSES processes, start ${SLURM_RESTART_COUNT:-0}, run folder $run_dir"
  srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
    exec "$python" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" \
      --deepspeed_multinode_launcher standard --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" --num_processes "$PROCESSES" \
      --main_process_ip "$MASTER" --main_process_port "$PORT" -m "$STAGE" "$@" --resume auto' srun "$@" &
  step=$!
  # A signal interrupts `wait`, not the step that it waits for.
  wait "$step"
  while kill -0 "$step" 2>/dev/null; do wait "$step"; done
  trap - USR1 TERM

  code=$(exit_code "$run_dir/exit.json")
  say "$stage ended with ${code:-no exit.json}"
  # Without a warning, and not running any more: somebody cancelled it, and does not want it back.
  if [ "$code" = 75 ] && { [ -n "$warned" ] || scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; }; then
    scontrol requeue "$SLURM_JOB_ID" || say "cannot be put back into the queue; submit it again to go on"
  fi
  return "${code:-1}"
}
