"""The losses between student and teacher, and their computation in little memory."""
