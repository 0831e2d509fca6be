"""Configuration: files, env.yaml and the command line become frozen dataclasses."""
