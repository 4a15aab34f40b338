"""The only room that touches the cryptography library: canonical JSON, owner's keys, signatures, key derivation."""
