"""A small program that asks both sides of a rollout the same questions and counts how they answer.

One pod per rollout, between one stable and one candidate. It judges nothing: whether the counts are good enough is
the operator's business, which reads them from `/counters`. It needs no access to the API server.
"""
