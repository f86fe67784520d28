"""The ways to run a cell: one package each."""
