"""Reading checkpoints safely: they are untrusted files."""
