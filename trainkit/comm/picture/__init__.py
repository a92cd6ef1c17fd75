"""Pictures of machines and of what jobs on them reach: in a terminal, and as SVG or PNG."""
