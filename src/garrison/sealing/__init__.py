"""Build side: from a model file, or a hardened folder, to a signed bundle.

Not signed in here: what the model is worth. Whoever seals vouches for the file that was given.
"""
