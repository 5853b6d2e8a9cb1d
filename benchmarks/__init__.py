"""Throughput benchmarks: one file a question, each with its peers, its floor and what it has not run.

`llc-fast bench` runs them, through `run`; installed as `llc_fast.benchmarks`. The questions are `step`, `noise`,
`memory`, `curves`, `host`, `chain` and `stacked`: modules with `tables(setting)`. What they share begins with an
underscore: `_timing` is the clock, `_work` what is timed, `_peers` whom we are compared with, `_table` what comes out.

`gpu` and `gpu.sh` are the suite for a machine with a GPU. `sass`, `instructions` and `pipes` look at what the kernels
compile to, without one. `page` fills docs/performance.md from `results/`.
"""
