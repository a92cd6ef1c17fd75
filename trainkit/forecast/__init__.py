"""Forecasts: what a job will hold in memory, how long its steps take, and how many hosts pay off."""
