"""Pages that report on a session: HTML with drawings in SVG, for a browser without a network."""
