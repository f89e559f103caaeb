"""`merklekv demo`: a broker and three nodes to look at while they are stopped, started and heal.

    process.py   a child process: launched, killed, frozen, what it said last
    broker.py    the broker: Mosquitto, or the wheel `iotcore`
    node.py      one `merklekv run`, and what it shows of itself
    cluster.py   all of them in a directory of their own, with traffic; are they converged?
    guard.py     a process that ends what is left when the demo was killed
    screen.py    the picture in the terminal
    show.py      the two ways to run it: with keys, and as a script that ends by itself

Nothing else imports this package.  It knows nodes as any client does: by their port.

What one may stop here heals by what nodes have: a node that was killed has its outbox on disk, and a session at the
broker that goes on queueing for it; nodes without a broker keep what they publish in their outbox, and the broker keeps
its sessions through its own outage.  A broker that loses its sessions is not healed by these, so the demo does not
stop one that way.
"""
