"""The runtime: YAML graphs, Rx, sources and sinks, sessions and lanes, the command line."""
