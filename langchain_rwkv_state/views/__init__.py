"""Shows what the other parts found, in pictures, pages and live views; measures nothing."""
