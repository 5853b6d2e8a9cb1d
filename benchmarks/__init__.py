"""Throughput benchmarks: one file a question, each with its peers, its floor and what it has not run.

`llc-fast bench` runs them; installed as `llc_fast.benchmarks`. `registry` lists the questions, `peers` who they are
asked of, `_timing` holds the clock. `gpu` and `gpu.sh` are the suite for a machine with a GPU; `sass` and
`instructions` count what the kernels compile to.
"""
