"""Playwright on Anchor sessions: suites that are switched, unchanged, and connections to sessions."""
