"""One file per peer of `benchmarks.join_peers`, each run by an interpreter of its own; and what they share."""
