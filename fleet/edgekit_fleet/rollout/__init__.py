"""Rollouts: state machines, target queries, strategies, gates, the pure decision core and its engine.

query, strategies, gates, states, snapshot, decide, commands     pure
engine, jobs                                                     the same against the database
"""
