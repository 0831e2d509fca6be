"""gymlet: a small gym. Runs agents against any hosted model, streamed, verified and scored."""

__version__ = "0.1.0"
