"""Makers of adversarial examples on a network that one holds: shared by attacks that need them, no attacks themselves.

Every maker takes images (n, channels, height, width) in [0, 1] as a float32 tensor and gives as many of the same form; it asks no
service and leaves the network as it is. Networks are given as functions of images: to logits (n, classes), or to features.
"""
