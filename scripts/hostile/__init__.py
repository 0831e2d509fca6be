"""A provider that misbehaves on purpose, and what is needed to measure a server in front of it."""
