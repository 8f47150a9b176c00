"""Preferences: segments of experience, labels that say which of two is better, and the reward learned from them."""
