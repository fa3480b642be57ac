"""What it costs, measured: all of it by `python -m benchmarks`; some modules are programs of their own as well."""
