"""Plans for an all-reduce over a topology: their cost, and the choice among them."""
