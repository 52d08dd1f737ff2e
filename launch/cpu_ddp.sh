#!/bin/sh
# Two processes on CPUs that exchange gradients over gloo: for tests, and for people without GPUs.
#   launch/cpu_ddp.sh train CONFIG [a.b=c ...]
# torchrun, as Accelerate starts several processes on CPUs only through MPI.
# Else torchrun gives restarted processes the addresses of the dead ones.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export ACCELERATE_USE_CPU=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec torchrun --standalone --nproc_per_node "${PROCESSES:-2}" -m rfft "$@"
