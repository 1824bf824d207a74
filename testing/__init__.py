"""Tiny checkpoints and other helpers of tests and benchmarks; not in the wheel."""
