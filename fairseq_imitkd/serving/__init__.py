"""A model over HTTP: what ``imitkd-serve`` runs."""
