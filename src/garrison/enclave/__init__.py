"""Where plaintext lives: the story of a request, and what runs it."""
