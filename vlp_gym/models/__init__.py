"""Reward models: the protocol, the registry, checkpoints, and one file per system."""
