"""Whose prefixes: references, rollouts, replayed rollouts, teacher samples."""
