"""The servers that Garrison is compared with, one file a peer.

Each file has two halves. What runs in the peer's own environment (`python -m benchmarks.serving.peers.NAME MODEL PORT`) knows nothing of
Garrison. `encode` and `decode`, used by the load generator, write a request and read an answer in the peer's best supported wire format, which
`WIRE` names. All serve the same ONNX file by ONNX Runtime on one thread, in the process that the peer computes in.
"""
