"""One training step and its state, timing, figures and validation."""
