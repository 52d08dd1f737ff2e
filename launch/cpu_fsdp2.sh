#!/bin/sh
# Two processes on CPUs under FSDP2, over gloo: for tests, and to see what a run on GPUs would do.
#   launch/cpu_fsdp2.sh train CONFIG [a.b=c ...]
# What fsdp2.yaml would make Accelerate say, had it FSDP for CPUs.
export ACCELERATE_USE_FSDP=true FSDP_VERSION=2
exec "$(dirname "$0")/cpu_ddp.sh" "$@"
