"""A topology as a picture: in the terminal, and as SVG, PNG or PDF."""
