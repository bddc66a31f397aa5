"""One file per question; figures, never tests. `python -m benchmarks` runs the short form of all of them."""
