"""Starting a job on several machines: over ssh, or by a file for a scheduler. Nothing here imports torch."""
