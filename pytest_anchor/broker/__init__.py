"""The one process of a run that creates, records and ends sessions, outside the processes that tests may change."""
