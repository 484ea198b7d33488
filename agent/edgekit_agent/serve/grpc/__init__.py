"""gRPC without grpcio: an HTTP/2 codec (`h2`), a protobuf codec, and services that are thin over the core.

`grpcio` costs 150 us of processor time for an empty call and 20 MiB of memory; what is here costs a tenth
(docs/serving.md). Nothing of it is needed on a device that speaks HTTP/1.1 only.
"""
