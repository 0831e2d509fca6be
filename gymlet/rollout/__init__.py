"""Rollouts: rows become tasks, tasks become scored records."""
