"""The server's side of HTTP/2 (RFC 9113, RFC 7541) as a state machine without IO.

`machine.Machine` takes bytes and a clock, calls a `sink.Sink` and collects bytes to send. It is a
security surface: every number of a client is checked against a bound before memory or time follows it.
"""
