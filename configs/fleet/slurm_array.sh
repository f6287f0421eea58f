#!/bin/bash
# sbatch configs/fleet/slurm_array.sh
#
# A Slurm array: each task does its part of the catalog, whoever does the others. Run here, by three
# nodes of one machine (tests/catalog/test_fleet_slurm.py). A task that Slurm gives up (a dead node
# ends it as FAILED, in spite of --requeue) leaves its part undone; the same command again, with any
# number of tasks, does what is left. Slurm's own retries prove nothing: ask `prolora fleet status`. A
# minute before its end a task is told to stop (B: is the process of this script, which prolora takes
# over); it then ends with exit code 0 and work left. STORE is what nodes share of subspaces and
# operators: s3://, gs://, or file:///folder of a shared file system; each has its copy in SCRATCH, which
# should be its own disk.

#SBATCH --array=0-63
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --cpus-per-task=8
#SBATCH --signal=B:TERM@60

export PROLORA_STORE="${SCRATCH:-/tmp}/prolora-store"
exec prolora fleet run "$CATALOG" --source "$SOURCE" --target "$TARGET" --out "$OUT" \
  --store "$STORE" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --local 8 --workers 1 --quiet
