"""The HTTP API and the live page. Needs Redis and the broker, no Docker."""
