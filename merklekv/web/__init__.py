"""What a node serves over HTTP, on a port of its own: the page for people, metrics and health for monitors.

server.py    requests, answers and streams; what every answer has in common
metrics.py   /metrics: what STATS has, for Prometheus
health.py    /livez and /readyz: for supervisors and load balancers
"""
