"""Reward models: the protocol (base), the registry, checkpoints, and one file for each system."""
