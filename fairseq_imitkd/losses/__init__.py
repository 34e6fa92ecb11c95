"""The losses between student and teacher, and how they are computed in little memory."""
