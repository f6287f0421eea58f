#!/bin/bash
# configs/fleet/over_ssh.sh host1 host2 host3
#
# Plain ssh: each host does its part. Not run here over ssh; its three commands at once on one host
# are (tests/catalog/test_fleet_runs.py). Credentials are those that each host has. STORE is what hosts
# share of subspaces and operators: s3://, gs://, or file:///folder of a shared file system.

set -u
count=$# index=0
for host in "$@"; do
  ssh "$host" "prolora fleet run '$CATALOG' --source '$SOURCE' --target '$TARGET' --out '$OUT' \
    --store '$STORE' --shard $index/$count --local \$(nproc) --workers 1 --quiet" &
  index=$((index + 1))
done
wait
exec prolora fleet status "$OUT"
