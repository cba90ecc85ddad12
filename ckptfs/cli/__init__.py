"""The command line: one module per command group, `main` for the parser and the exit codes."""
