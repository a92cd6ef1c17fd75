"""What a rank holds in memory, and how much fits."""
