#!/usr/bin/env bash
# Starts one training as several processes: one per GPU (or PROCESSES_PER_NODE), in a job of Slurm on each of its nodes.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
usage="Usage: local/torchrun.sh train ARGUMENT...      # arguments: see 'essence train --help'
 e.g.: local/torchrun.sh train --model conf/models/student_tdnn.yaml \\
         data/mini/train_sp_hires exp/mini/ali exp/mini/student
 In run.sh, on Slurm: train_launcher=local/torchrun.sh \\
         cuda_cmd='local/slurm.sh --partition gpu --nodes 2 --gpu 4' ./run.sh"
case ${1:-} in
  --help | -h) echo "$usage"; exit 0 ;;
  train) ;;
  *) echo "$usage" >&2; exit 2 ;;
esac
# shellcheck source=path.sh
. "${BASH_SOURCE[0]%/*}/../path.sh"
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# What went wrong, the process has said itself: no traceback of the launcher behind it. Nor does it leave its folder of
# logs, which stay empty, among the temporary files.
torchrun='import sys
import os
sys.path.sort(key=lambda path: path in os.environ["PYTHONPATH"].split(os.pathsep))  # what it names comes last
sys.path[:] = filter(None, sys.path)  # not the working directory
import socket
import tempfile
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import main
try:
    with tempfile.TemporaryDirectory(prefix="essence-torchrun-") as logs:
        main(["--log-dir", logs, *sys.argv[1:]])
except ChildFailedError as error:  # where one was killed, the others fail because of it, or torchrun ends them
    order = lambda item: (item[1].exitcode == -15, item[1].exitcode > 0, item[0])
    rank, failure = min(error.failures.items(), key=order)
    on = f"torchrun: process {rank} (on {socket.gethostname()}, PID {failure.pid})"
    if failure.exitcode < 0:
        sys.exit(f"{on} was killed by signal {-failure.exitcode} ({failure.signal_name()})")
    sys.exit(f"{on} ended with status {failure.exitcode}; its own message says why")
except SignalException as error:
    sys.exit(f"torchrun: stopped by signal {int(error.sigval)}")
except RendezvousError as error:
    sys.exit(f"torchrun: {socket.gethostname()} does not meet the other nodes of this training: {error}")'
if [ -z "${SLURM_JOB_ID:-}" ]; then
  count=${PROCESSES_PER_NODE:-$("$ESSENCE_PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
  exec "$ESSENCE_PYTHON" -c "$torchrun" --standalone --nproc-per-node "$count" \
    "$ESSENCE_ROOT/pytools/essence_kd/__main__.py" "$@"
fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
# The nodes meet at a port that is free, under a name that no other job has: at one that follows from the number of the
# job, jobs of two clusters on one machine meet each other, and what is left of a requeued one meets the next.
port=$("$ESSENCE_PYTHON" -I -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
# srun does not ask for the cores of its job by itself (Slurm 22.05 and later), and hands on what the job was handed
exec srun --kill-on-bad-exit=1 --export=ALL --nodes "$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$ESSENCE_PYTHON" -c "$torchrun" --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" --rdzv-backend c10d \
  --rdzv-id "$SLURM_JOB_ID.$port.$RANDOM" --rdzv-conf read_timeout=300 --rdzv-endpoint "$address:$port" \
  "$ESSENCE_ROOT/pytools/essence_kd/__main__.py" "$@"
