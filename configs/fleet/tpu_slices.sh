#!/bin/bash
# configs/fleet/tpu_slices.sh ZONE COUNT
#
# TPU queued resources: COUNT slices of one host each (v5litepod-4), preemptible, one part for each.
# Not run here. Many single-host slices, not one v5e-256: files are independent and need no
# interconnect, a preempted host of a large slice takes all of it along, and a process on such a host
# waits for all others unless TPU_PROCESS_BOUNDS says otherwise.
# CATALOG, SOURCE, TARGET, OUT and STORE, which slices share, are URLs. The same command
# again does what is left.

set -u
zone=$1 count=$2
for index in $(seq 0 $((count - 1))); do
  gcloud compute tpus queued-resources create "prolora-$index" --node-id "prolora-$index" \
    --zone "$zone" --accelerator-type v5litepod-4 --runtime-version v2-alpha-tpuv5-lite --spot
done
for index in $(seq 0 $((count - 1))); do
  until gcloud compute tpus tpu-vm ssh "prolora-$index" --zone "$zone" --command true; do
    sleep 30
  done
  gcloud compute tpus tpu-vm ssh "prolora-$index" --zone "$zone" --command "
    pip install 'prolora_jax[fleet]' 'jax[tpu]' &&
    prolora fleet run '$CATALOG' --source '$SOURCE' --target '$TARGET' --out '$OUT' \
      --store '$STORE' --shard $index/$count --quiet" &
done
wait
exec prolora fleet status "$OUT"
