"""Tables and live views for a terminal, printed by rich."""
