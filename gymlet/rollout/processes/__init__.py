"""Rollouts in several processes of one machine: one forks them, one writes, the others run."""
