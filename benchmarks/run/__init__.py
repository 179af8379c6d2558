"""What is run: which seeds, on which workers, one training, its evaluation, and what it will cost."""
