"""The record on disk of every session that a run creates, and which runs live."""
