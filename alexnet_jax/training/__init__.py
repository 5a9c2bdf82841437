"""The parts of training: what a run stands on, its state, its step, its scores."""
