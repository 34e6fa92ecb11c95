"""The frozen teacher: loading, scoring, choosing among several."""
