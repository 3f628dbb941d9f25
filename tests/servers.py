"""Real servers for tests; the fixtures come with the embedded servers."""
