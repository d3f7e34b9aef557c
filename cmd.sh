# shellcheck shell=bash
# How jobs run. Kaldi's contract: $cmd [--mem 4G] [--gpu 1] [--max-jobs-run 2] [JOB=1:8] LOG COMMAND...
# local/jobs.sh runs them on this machine; on a grid, set cmd (or --cmd) to Kaldi's queue.pl or slurm.pl.
export cmd=${cmd:-$ESSENCE_ROOT/local/jobs.sh}
