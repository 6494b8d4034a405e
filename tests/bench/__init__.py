"""Benchmarks: every figure is a ratio of things measured side by side in one run. See ``python -m bench --help``."""
