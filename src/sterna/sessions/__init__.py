"""What outlives a request: the token log that heals what clients drop, and sessions on disk."""
