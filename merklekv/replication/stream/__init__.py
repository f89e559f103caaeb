"""The stream: events to and from the MQTT broker."""
