"""The parts of training: a run's setup and plan, its state, step, scores and diagnostics."""
