"""Pictures, pages and live views of what the other parts found; they measure nothing."""
