#!/bin/bash
# configs/fleet/ray_over_ssh.sh host1 host2 host3
#
# A Ray cluster by plain ssh, with this host as its head, which takes no work. Not run here over ssh;
# hosts of one machine are (tests/apart/fleet_ray.py). Places are URLs, or folders that
# all hosts share. A host may be added or lost while it goes on. STORE is what hosts share of subspaces
# and operators: s3://, gs://, or file:///folder of a shared file system. Ray gives workers a niceness
# of 15, behind whatever else runs on a host, unless told otherwise.

set -u
port=6379
ray start --head --port "$port" --num-cpus 0 --disable-usage-stats
for host in "$@"; do
  ssh "$host" "RAY_worker_niceness=0 ray start --address '$(hostname -I | cut -d ' ' -f 1):$port'"
done
prolora fleet run "$CATALOG" --source "$SOURCE" --target "$TARGET" --out "$OUT" \
  --store "$STORE" --ray auto --local 8 --workers 1 --quiet
code=$?
for host in "$@"; do
  ssh "$host" ray stop
done
ray stop
exit "$code"
