"""An Anchor API of one's own: real HTTP, real CDP, a local Chromium per session, no account."""
