"""Training throughput, side by side: `python benchmarks/speed`.

A row compares one of ours with a peer at the same network, batch, optimiser and replay ratio. It
has a process of its own, in which both train in turns, so that whatever else the machine does falls
on both; the ratio of a turn is one sample. Each computes with the number of torch threads with
which it is fastest. The run asserts that both did the same work.

A peer whose requirements are not ours has an environment and a process of its own, and takes its
turns there. Importing `speed`, `speed.side`, `speed.parts`, `speed.child` and a peer's module needs
nothing but the standard library and that peer.
"""
