"""What a set of distillation runs came to, on one page that needs nothing else: ``imitkd-report``."""
