"""Replication: nodes of one cluster come to hold the same data.

cluster    the members, and which of them are present
stream     each write to the other nodes over an MQTT broker, and theirs here
sync       exchanges with peers, which find and repair what differs
"""
