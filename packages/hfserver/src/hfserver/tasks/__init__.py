"""What is made of a model's numbers: one module for each task that reads text."""
