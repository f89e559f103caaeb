"""What a node serves over HTTP, on a port of its own: the page for people, metrics and health for monitors.

server.py    requests, answers and streams; what every answer has in common
"""
