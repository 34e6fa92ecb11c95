"""Quality, speed and size of any number of models side by side on one test set: ``imitkd-evaluate``."""
