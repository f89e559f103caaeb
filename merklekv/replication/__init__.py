"""Telling other nodes what was written here, over an MQTT broker, and taking in what they write."""
