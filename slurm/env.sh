# shellcheck shell=bash
# Sourced by every .sub file, in the directory of the repository: `source slurm/env.sh`, then `srun python -m ...`.
#
# In a SLURM job srun is SLURM's, one task a GPU. Anywhere else (./launch.sh without a cluster, ./run.sh, plain bash)
# srun is the function below: torchrun over BATON_LOCAL_TASKS ranks, or the command itself where that is 1.
set -euo pipefail
umask 077
trap : TERM USR1 USR2 # these are for the ranks, which save; this shell waits for them

if [ -z "${baton_root:-}" ]; then # run.sh has been there already
    baton_needs=nothing-new
    # shellcheck source=launchers/bootstrap.sh
    source "$(dirname -- "${BASH_SOURCE[0]}")/../launchers/bootstrap.sh"
fi
cd "$baton_root"
export BATON_RUNS="${BATON_RUNS:-$baton_root/runs}"

# A link of a run that is over, or that a person stopped, has nothing to do; it says so before any import.
for baton_word in "$@"; do
    case "$baton_word" in run.name=*) baton_run="$BATON_RUNS/${baton_word#run.name=}" ;; esac
done
if [ -n "${BATON_LINK:-}" ] && [ -n "${baton_run:-}" ]; then
    if [ -e "$baton_run/DONE" ]; then
        echo "baton: $baton_run is done: nothing to do"
        exit 0
    fi
    for baton_marker in STOP FAILED; do
        if [ -e "$baton_run/$baton_marker" ]; then
            echo "baton: $baton_run/$baton_marker: $(cat "$baton_run/$baton_marker")"
            exit 75
        fi
    done
fi

# What an enclosing job or torchrun left behind would be read by ours.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
for baton_name in "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}"; do unset "$baton_name"; done

if [ -n "${SLURM_JOB_ID:-}" ] && [ -z "${BATON_LOCAL_TASKS:-}" ]; then
    read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export MASTER_ADDR MASTER_PORT="$((15000 + SLURM_JOB_ID % 15000))"
    if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
        export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun does not inherit it since SLURM 22.05
    fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
else
    for baton_name in "${!SLURM_@}"; do unset "$baton_name"; done
    baton_cores="$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')"
    baton_tasks="${BATON_LOCAL_TASKS:-1}"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((baton_cores > baton_tasks ? baton_cores / baton_tasks : 1))}"

    baton_ranks() { # set baton_command to the command line that starts the ranks of "$@"
        while [[ "${1:-}" == -* ]]; do shift; done # options of SLURM's srun
        baton_command=("$@")
        if [ "$baton_tasks" -gt 1 ]; then
            baton_command=(python -m torch.distributed.run --standalone --nproc-per-node "$baton_tasks" "${@:2}")
        fi
    }

    srun() {
        baton_ranks "$@"
        "${baton_command[@]}"
    }
fi
