"""What goes over a wire: Open Inference Protocol messages, the enclave's own messages, signed statements."""
