"""Training: optimizer groups, the state, the step, the loop."""
