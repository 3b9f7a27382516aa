"""The command line for what lies outside a run."""
