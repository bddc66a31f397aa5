"""Task scores become one utility: weights, scales and the exploration draw."""
