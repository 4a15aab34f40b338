"""The untrusted host: thin transports (HTTP, gRPC), who asks and how much, batches, the ledger. It never reads a tensor. `root.py` puts it together."""
