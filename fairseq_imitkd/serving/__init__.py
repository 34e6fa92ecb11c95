"""The HTTP server of ``imitkd-serve``."""
