# shellcheck shell=bash
# Settings of one site. Copy to slurm/cluster.sh (git ignores it) and keep what you need; every start reads it.

# What every job of yours carries: sbatch and salloc read these, so no .sub file needs to name an account.
# export SBATCH_ACCOUNT=my_project SALLOC_ACCOUNT=my_project
# export SBATCH_PARTITION=gpu SALLOC_PARTITION=gpu

# Where runs are written: a file system that all nodes share, with room for checkpoints.
# export BATON_RUNS=/scratch/$USER/baton_runs

# The Python that makes .venv, or an environment that has the packages.
# module load python/3.12
# source "$HOME/miniforge3/bin/activate" baton

# Caches away from a small home directory.
# export HF_HOME=/scratch/$USER/huggingface PIP_CACHE_DIR=/scratch/$USER/pip

# NCCL finds its own interface. Name one only if it picks the wrong one.
# export NCCL_SOCKET_IFNAME=ib0
