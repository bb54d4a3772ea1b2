"""The command line, `cronium`."""
