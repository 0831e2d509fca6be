"""Rollouts on the nodes of a Ray cluster, and the limits that hold for all of them."""
