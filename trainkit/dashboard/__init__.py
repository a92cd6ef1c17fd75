"""A local server of the reports of runs, which follows those that are going on."""
