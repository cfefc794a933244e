#!/bin/bash
# Starts dml_jax.train on every host of a Cloud TPU slice; arguments after the name and zone are those of dml_jax.train.
#
#   launch/tpu_pod.sh TPU_NAME ZONE --config=configs/NAME.py --workdir=/mnt/runs/NAME
#
# Each host needs this repository in ~/dml_jax with its environment in ~/dml_jax/.venv (pip install -e '.[tpu]'). The hosts
# find each other (--cluster), and the work folder is on storage that all of them have mounted. Started again, the command
# goes on from the last checkpoint.
set -euo pipefail

if (( $# < 3 )); then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

# Huge pages (GLIBC_TUNABLES) for large arrays of the host.
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd dml_jax && GLIBC_TUNABLES=glibc.malloc.hugetlb=1 exec .venv/bin/python -m dml_jax.train --cluster $(printf '%q ' "$@")"
