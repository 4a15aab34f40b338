"""A sealed model, read side only: manifest, signature, the numbered verify steps. Small: it is trusted code."""
