"""Training of reward models: the loop and its resumable state."""
