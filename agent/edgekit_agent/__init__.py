"""The device side of edgekit: fetches, verifies, decrypts, probes, swaps, serves, watches, rolls back.

Two processes. The supervisor (control plane) owns identity, journal, sockets and plaintext; the serving
process (data plane, `serve/` and `worker`) runs the model and may crash without harm.
"""
