"""The teacher's answers on a data set's own targets, computed once and read in training."""
