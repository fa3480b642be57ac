"""What it costs, measured: each module is a program, `python -m benchmarks.NAME`."""
