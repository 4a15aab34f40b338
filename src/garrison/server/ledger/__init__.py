"""What was asked and answered: an append-only, hash-chained log whose length the enclave signs. See docs/ledger.md."""
