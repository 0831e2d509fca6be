"""The server: the only part that speaks aiohttp.web."""
