"""The soak: three nodes and a broker under mixed load, faults and hostile clients, for as long as you like.

cluster.py   the processes, the networks between them, the disks
account.py   which writes were acknowledged, and what every node has to show therefore
load.py      honest clients of each node
hostile.py   hostile clients
faults.py    what is done to nodes and broker, and to each in turn
curves.py    what is recorded each second
flat.py      the rule that tells whether a curve grows
report.py    the table, the picture and the page
run.py       a run from the first start to the last check
"""
