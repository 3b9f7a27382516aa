"""The one implementation of ending sessions: for a run, for its crash, for dead runs and the command line."""
