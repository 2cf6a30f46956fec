"""Clusters of real members in one thread, under a scheduler that a seed decides, and a judge of what clients saw."""
