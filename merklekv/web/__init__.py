"""What a node serves over HTTP, on a port of its own: the page for people, metrics and health for monitors.

server.py    requests, answers and streams; what every answer has in common
page.py      the routes of the page, and its files in static/
view.py      the nodes of a cluster, watched while a page is open
watch.py     one node, asked twice a second over its client port
latency.py   rates and percentiles from what it tells of its commands
picture.py   what the page shows, made of what the nodes have said
verdict.py   the same in a sentence
keys.py      pages of keys, and the changes of one
"""
