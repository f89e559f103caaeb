"""`merklekv demo`: a broker and three nodes to watch while they are stopped, started and heal.

    part.py       the processes: the broker, and nodes that are observed through their ports
    account.py    which writes were acknowledged, and what a node has to hold therefore
    writer.py     the traffic of a node
    health.py     in an outage, healing or equal; and how long it took
    cluster.py    all of that in a directory of its own
    script.py     outages, each at its time
    controls.py   what a viewer can do, by key, by button and by script
    screen.py  page.py    the picture in the terminal; the page with its buttons
    show.py       the two ways to run the demo: with keys, and as a script that ends by itself

What the demo stops heals without an exchange: a killed node has its outbox on disk and a session at the broker that
queues for it; the broker keeps its sessions through its own outage, and nodes keep events in their outboxes meanwhile.
"""
