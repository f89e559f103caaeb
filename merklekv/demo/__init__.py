"""`merklekv demo`: a broker and three nodes to watch while they are stopped, started and heal.

    part.py      the processes: the broker, and nodes that are observed through their ports
    cluster.py   all of them in a directory of their own, with traffic; are they converged?
    guard.py     a process that cleans up if the demo was killed
    screen.py    the picture in the terminal
    show.py      the two ways to run the demo: with keys, and as a script that ends by itself

What the demo stops heals without an exchange: a killed node has its outbox on disk and a session at the broker that
queues for it; the broker keeps its sessions through its own outage, and nodes keep events in their outboxes meanwhile.
"""
