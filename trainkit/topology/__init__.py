"""The links of a machine: read, measured, and drawn."""
