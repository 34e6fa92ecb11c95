"""Text: tokenisers and subwords, scores of a corpus, and rewards of single sentences."""
