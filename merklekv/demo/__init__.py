"""`merklekv demo`: a broker and three nodes to watch while they are stopped, started and heal.

    part.py      a process of the demo, and whether it should run; the broker
    node.py      one `merklekv run`, observed through its port
    cluster.py   all of them in a directory of their own, with traffic; are they converged?
    guard.py     a process that cleans up if the demo was killed
    screen.py    the picture in the terminal
    show.py      the two ways to run the demo: with keys, and as a script that ends by itself

Only the command `demo` imports this package. `merklekv.harness` has the processes. The demo treats nodes as any client
does, through their ports.

What the demo stops heals without an exchange over anti-entropy: a killed node has its outbox on disk, and a session at
the broker that queues for it; nodes without a broker keep events in their outboxes, and the broker keeps its sessions
through its own outage. The demo does not stop a broker in a way that loses its sessions.
"""
