"""Where a service keeps its data: one contract, an engine a file."""
