"""The wire, pure: bytes in, bytes out. No I/O, no clock, no chance."""
