"""Text: subwords, scores and rewards."""
