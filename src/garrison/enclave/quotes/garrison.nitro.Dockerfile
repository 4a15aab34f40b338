# Image of an AWS Nitro enclave with Garrison's inner program. NOT RUN ON HARDWARE: read it as a starting point.
#
# On the parent instance (launched with enclaves enabled, docker and nitro-cli installed), in a folder that holds this file as
# Dockerfile and the wheel of the very version of Garrison that serves there:
#
#   docker build -t garrison-nitro .
#   nitro-cli build-enclave --docker-uri garrison-nitro --output-file garrison.eif
#   nitro-cli run-enclave --eif-path garrison.eif --enclave-cid 16 --cpu-count 2 --memory 2048
#   garrison serve BUNDLE --trust OWNER.pub --isolation nitro --enclave 16:5005 --require-isolation hardware
#
# The PCR0 that build-enclave prints is what a client's policy lists under measurements.nitro: it covers this whole image, and neither
# the bundle nor the owner's key, which come from the parent; those a client's policy names under owners and manifests.
# Two builds of this file give two PCR0 unless base image and packages are pinned: give BASE a digest, and pip a file of hashes.
# Never add --debug-mode: PCR0 is all zero then, and the inner program refuses to serve.
#
# Memory: twice the bundle while it is opened, once afterwards, some 150 MB for each model that is served, and 70 MB for a program that waits.

ARG BASE=python:3.12-slim
FROM ${BASE}
COPY garrison-*.whl /wheel/
RUN pip install --no-cache-dir "$(echo /wheel/garrison-*.whl)[attest]" && rm -r /wheel
ENV OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
CMD ["python", "-m", "garrison.enclave.doorkeeper", "--port", "5005"]
