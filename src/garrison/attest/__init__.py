"""What evidence of an enclave is, and when it is good enough: policy, numbered steps, verifiers. It only judges; it makes no evidence."""
